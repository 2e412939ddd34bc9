# SPDX-License-Identifier: MIT
"""The guest: its image, its virtual machine, its life. A toolkit: it imports no stage of the pipeline."""
