# SPDX-License-Identifier: MIT
#
# Prints the units of a configured kernel without building anything: one OBJECT of a C source a line, as kbuild
# names it. Each folder has a make of its own, as in kbuild, for the same names mean other things in another one
# (Documentation/kbuild/makefiles.rst says what obj-y and its kin are). Given: config, srctree, lister (this file).
dir ?= .
include $(config)

SRCARCH := x86
BITS := 64
obj := $(dir)
srcroot := $(srctree)
src := $(srctree)/$(dir)
# What the top Makefile has of arch/x86/Makefile; folders without anything to build do no harm.
ifeq ($(dir),.)
ARCH_LIB := lib/ arch/x86/lib/
ARCH_DRIVERS := arch/x86/math-emu/ $(if $(CONFIG_PCI),arch/x86/pci/) $(if $(CONFIG_PM),arch/x86/power/) arch/x86/video/
endif

include $(firstword $(wildcard $(srctree)/$(dir)/Kbuild $(srctree)/$(dir)/Makefile))

listed := $(obj-y) $(obj-m) $(lib-y) $(lib-m) $(extra-y)
parts = $(strip $($(1:.o=-objs)) $($(1:.o=-y)) $($(1:.o=-m)))
objects := $(foreach one,$(filter %.o,$(listed)),$(or $(call parts,$(one)),$(one)))
units := $(foreach one,$(sort $(objects)),$(if $(wildcard $(srctree)/$(dir)/$(one:.o=.c)),$(dir:.%=%)/$(one)))
folders := $(patsubst %/,%,$(sort $(filter %/,$(listed)) $(subdir-y) $(subdir-m)))
below := $(dir:.%=%)

.PHONY: list-units $(folders:%=list-%)
list-units: $(folders:%=list-%)
	$(if $(units),@printf '%s\n' $(units))
$(folders:%=list-%): list-%:
	@$(MAKE) --no-print-directory -f $(lister) dir=$(if $(below),$(below)/)$* list-units
