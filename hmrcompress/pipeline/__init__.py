"""Pictures or a video to bodies: decode, boxes, crops, network, temporal decoder, files."""
