"""Images whose objects are annotated: boxes, and outlines where there are any."""
