# SPDX-License-Identifier: MIT
"""Stage ``build``: from changed files to pairs of objects, the one the guest booted and the one of now.

kernel_tree      which kernel, and whether it can be live patched
debian_kernel    the packaged kernel, fetched without root
cmd_files        pure: what kbuild wrote down in ``.foo.o.cmd``
external_module  kbuild, once: the modules of a folder and their translation units
base             the sources and objects the guest booted, kept by content
compile          the recorded command, replayed
lines            pure: texts whose unchanged lines keep the numbers they had in the base
overlay          the file system as it is, but for such texts
units            which units a set of changed files touches

An edit that only moves lines changes no function: unchanged lines, also those in a function that did change,
report the numbers that they had when the guest booted (in a WARN, say), and new lines the ones they have now.
"""
