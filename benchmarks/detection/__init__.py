"""A detector, cut: boxes by a learned bottleneck, beside the whole detector, JPEG and WebP."""
