"""AlexNet as it was drawn in 2012: one tower per process, activations crossing only at conv3 and fc6-fc8."""

__version__ = "0.1.0"
