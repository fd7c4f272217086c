"""From a prompt to text: the engine contract, engines on Keras models, sampling, the loop, replies."""
