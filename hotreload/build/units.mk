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
# What the top Makefile has of arch/x86/Makefile.
ifeq ($(dir),.)
ARCH_LIB := lib/ arch/x86/lib/
ARCH_DRIVERS := $(if $(CONFIG_MATH_EMULATION),arch/x86/math-emu/) $(if $(CONFIG_PCI),arch/x86/pci/)
ARCH_DRIVERS += $(if $(CONFIG_PM),arch/x86/power/) $(if $(CONFIG_FB)$(CONFIG_VIDEO),arch/x86/video/)
endif

include $(firstword $(wildcard $(srctree)/$(dir)/Kbuild $(srctree)/$(dir)/Makefile))

in_image := $(obj-y) $(lib-y) $(extra-y)
in_modules := $(obj-m) $(lib-m)
# $(call parts,OBJECTS,SUFFIXES): what each is linked from, or itself. Only modules have parts of NAME-m.
parts = $(foreach one,$(filter %.o,$1),$(or $(strip $(foreach suffix,$2,$($(one:.o=-$(suffix))))),$(one)))
objects := $(sort $(call parts,$(in_image),objs y) $(call parts,$(in_modules),objs y m))
units := $(foreach one,$(objects),$(if $(wildcard $(srctree)/$(dir)/$(one:.o=.c)),$(dir:.%=%)/$(one)))
folders := $(patsubst %/,%,$(sort $(filter %/,$(in_image) $(in_modules)) $(subdir-y) $(subdir-m)))
below := $(dir:.%=%)

.PHONY: list-units $(folders:%=list-%)
list-units: $(folders:%=list-%)
	$(if $(units),@printf '%s\n' $(units))
$(folders:%=list-%): list-%:
	@$(MAKE) --no-print-directory -f $(lister) dir=$(if $(below),$(below)/)$* list-units
