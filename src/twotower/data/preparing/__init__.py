"""Makes data sets ready for training: examines or converts the images, and fits mean image and colour PCA."""
