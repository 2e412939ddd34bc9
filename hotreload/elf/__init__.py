# SPDX-License-Identifier: MIT
"""Read relocatable x86-64 objects into named sections and symbols, and write them. Imports no stage."""
