"""Backbones: network inputs "b 3 h w" to four maps "b c h w" of strides 4, 8, 16 and 32."""
