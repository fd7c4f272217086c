"""The graphs and engines of fixed shapes that SavedModel, TFLite and LiteRT-LM files share."""
