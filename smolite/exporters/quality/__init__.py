"""What each way to quantize costs, measured."""
