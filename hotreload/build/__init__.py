# SPDX-License-Identifier: MIT
"""Stage ``build``: turn changed files into pairs of objects, the base object and the patched object.

kernel_tree      find a kernel, and check whether it can be live patched
debian_kernel    fetch the packaged kernel without root
cmd_files        pure: parse what kbuild recorded in ``.foo.o.cmd``
built            the result of a kbuild run: modules (vmlinux is one of them) and the files they consist of
external_module  run kbuild once on a module's folder, and find its modules and translation units
kernel_sources   the same for a kernel's own tree, from the ``.cmd`` files that its build left
kernel_record    the base of such a kernel, identified by the build-id of vmlinux
kernel_make      `hotreload kernel build`; kernel_config and kernel_progress are its parts
base             the sources and objects the guest booted, stored by content
compile          replay the recorded compiler command
lines            pure: texts whose unchanged lines keep the numbers they have in the base
overlay          a view of the file system in which some files have such texts
units            find the units that a set of changed files affects

An edit that only moves lines changes no function. Unchanged lines, including those in a function that did
change, report the line numbers that they had when the guest booted (in a WARN, for example). Added lines
report their numbers in the edited file.
"""
