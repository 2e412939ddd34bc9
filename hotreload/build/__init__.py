# SPDX-License-Identifier: MIT
"""Stage ``build``: from changed files to pairs of objects, the one the guest booted and the one of now.

kernel_tree      which kernel, and whether it can be live patched
debian_kernel    the packaged kernel, fetched without root
cmd_files        pure: what kbuild wrote down in ``.foo.o.cmd``
built            what kbuild has built: modules, vmlinux among them, and the files of that
external_module  kbuild, once: the modules of a folder and their translation units
kernel_sources   the same of a kernel's own tree, from the notes that its build left
kernel_record    the base of such a kernel, found again by the build-id of vmlinux
kernel_make      `hotreload kernel build`; kernel_config and kernel_progress are its parts
base             the sources and objects the guest booted, kept by content
compile          the recorded command, replayed
lines            pure: texts whose unchanged lines keep the numbers they had in the base
overlay          the file system as it is, but for such texts
units            which units a set of changed files touches

An edit that only moves lines changes no function: unchanged lines, also those in a function that did change,
report the numbers that they had when the guest booted (in a WARN, say), and new lines the ones they have now.
"""
