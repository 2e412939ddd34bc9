# SPDX-License-Identifier: MIT
"""The guest: its image, its virtual machine, its life cycle.

A toolkit that imports no stage of the pipeline.
"""
