"""Mask R-CNN and Cascade R-CNN on a pyramid, with ViTDet's arithmetic."""
