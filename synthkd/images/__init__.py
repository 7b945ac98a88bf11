"""Images of any origin as bytes for a network: decoding, value ranges, arrays, augmentation."""
