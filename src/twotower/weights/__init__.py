"""Weights in and out: merged, exported, verified, from another run, from Caffe and torchvision."""
