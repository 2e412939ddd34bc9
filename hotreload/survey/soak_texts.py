# SPDX-License-Identifier: MIT
"""Generate the files of the soak's driver: those that are edited, and those that never are. Pure."""

from __future__ import annotations

from hotreload.survey.soak_driver import (
    MODULE,
    PROBES,
    SCALE_FILE,
    SCALED,
    SHARED_FILE,
    UNITS,
    Driver,
    Function,
    Scale,
    Unit,
)


def texts(driver: Driver) -> dict[str, str]:
    """Return the content of each file that is edited, by name."""
    files = {f"{unit.name}.c": unit_text(unit) for unit in driver.units}
    return files | {SHARED_FILE: _shared_text(driver), SCALE_FILE: _scale_text(driver.scale)}


def unit_text(unit: Unit) -> str:
    name, first = unit.name, unit.functions[0].name
    scale = f'#include "{SCALE_FILE}"\n' if name in SCALED else ""
    extra = "".join(f"\tu64 extra_{number};\n" for number in range(unit.members))
    second = f"\t.second = {unit.second},\n" if unit.second else ""
    variables = "".join(dict.fromkeys(statement.global_c for statement in unit.statements))
    functions = "\n".join(_function_text(function) for function in reversed(unit.functions))
    life = MAIN if name == "main" else ""
    for word, value in (("BANNER", unit.banner), ("EXPORTED", unit.exported), ("STRIDE", str(unit.stride))):
        life = life.replace(word, value)
    return f"""\
// SPDX-License-Identifier: GPL-2.0
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include "{SHARED_FILE}"
{scale}
/* {unit.comment} */
static u32 limit = {unit.limit};
module_param_named({name}_limit, limit, uint, 0644);
static u32 count = {unit.start};
static struct {{
	u32 reads;
	u32 last;
{extra}}} state;
{variables}
{functions}
const struct soak_ops {name}_ops = {{
	.first = {first},
{second}}};

int {name}_show(struct seq_file *m, void *v)
{{
	const struct soak_ops *ops = {name}_ops_of();
	u32 a = {first}(m, {PROBES[0]});
	u32 b = {first}(m, {PROBES[1]});
	u32 c = ops->first(m, {PROBES[2]});
	u32 d = ops->second ? ops->second(m, {PROBES[0]}) : 0;

	state.reads++;
	state.last = a ^ b;
	soak_tell(m, "{name}.reads", state.reads);
	soak_tell(m, "{name}.count", ++count);{unit.error}
	seq_printf(m, "= {name} {unit.word} %u %u %u %u\\n", a, b, c, d);
	return 0;
}}
{life}"""


def _function_text(function: Function) -> str:
    body = "\n\t".join(statement.c for statement in function.body)
    static = "static " if function.is_static else ""
    return f"{static}u32 {function.name}(struct seq_file *m, u32 n)\n{{\n\t{body}\n\treturn n;\n}}\n"


def _shared_text(driver: Driver) -> str:
    names = [each.name for unit in driver.units for each in unit.functions if not each.is_static]
    prototypes = "".join(f"u32 {name}(struct seq_file *m, u32 n);\n" for name in names)
    shows = "".join(f"int {name}_show(struct seq_file *m, void *v);\n" for name in UNITS)
    tables = "".join(
        f"extern const struct soak_ops {name}_ops;\nconst struct soak_ops *{name}_ops_of(void);\n"
        for name in UNITS
    )
    mix = "\n\t".join(statement.c for statement in driver.shared.mix)
    return f"""\
/* SPDX-License-Identifier: GPL-2.0 */
/* {driver.shared.comment} */
struct soak_ops {{
	u32 (*first)(struct seq_file *m, u32 n);
	u32 (*second)(struct seq_file *m, u32 n);
}};
{tables}
{driver.unit("main").exported} soak_hash(u32 n, const char *text);
void soak_tell(struct seq_file *m, const char *name, u32 value);
{shows}
{prototypes}
static inline u32 soak_mix(u32 n)
{{
	{mix}
	return n;
}}
"""


def _scale_text(scale: Scale) -> str:
    return f"/* {scale.comment} */\n#define SCALE(n) ((n) * {scale.factor}u + {scale.offset}u)\n"


MAIN = (
    """
EXPORTED soak_hash(u32 n, const char *text)
{
	n ^= 0x811c9dc5u;
	while (*text)
		n = (n ^ (u8)*text++) * 0x01000193u;
	return n;
}
EXPORT_SYMBOL_GPL(soak_hash);

static u32 beats;
static void beat(struct timer_list *timer);
static DEFINE_TIMER(timer, beat);

static void beat(struct timer_list *unused)
{
	beats = tick(NULL, beats) * 2 + 1;
	mod_timer(&timer, jiffies + HZ / 50);
}

static u32 walked;
static struct task_struct *walker;

static int walk(void *unused)
{
	while (!kthread_should_stop()) {
		walked += STRIDE;
		msleep(20);
	}
	return 0;
}

static struct proc_dir_entry *folder;

static int __init soak_init(void)
{
	pr_info("soak: BANNER\\n");
	folder = proc_mkdir("soak", NULL);
"""
    + "".join(f'\tproc_create_single("{name}", 0, folder, {name}_show);\n' for name in UNITS)
    + """\
	mod_timer(&timer, jiffies + HZ);
	walker = kthread_run(walk, NULL, "soak_walker");
	return 0;
}

static void __exit soak_exit(void)
{
	if (!IS_ERR(walker))
		kthread_stop(walker);
	del_timer_sync(&timer);
	proc_remove(folder);
}
module_init(soak_init);
module_exit(soak_exit);
MODULE_LICENSE("GPL");
"""
)

# Functions that return each unit's table, so that its own compile does not know the contents, and the one
# that prints counters.
FIXED = """\
// SPDX-License-Identifier: GPL-2.0
#include <linux/proc_fs.h>
#include <linux/seq_file.h>
#include "soak.h"

void soak_tell(struct seq_file *m, const char *name, u32 value)
{
	if (m)
		seq_printf(m, "%s %u\\n", name, value);
}
""" + "".join(
    f"\nconst struct soak_ops *{name}_ops_of(void)\n{{\n\treturn &{name}_ops;\n}}\n" for name in UNITS
)

KBUILD = f"""\
obj-m := {MODULE}.o
{MODULE}-y := {" ".join(f"{name}.o" for name in UNITS)} fixed.o
"""
# A reader that never stops. Its rounds show that the guest is alive.
SETUP = (
    "(while :; do cat /proc/soak/* >/dev/null; echo >>/tmp/rounds; sleep 0.1; done)"
    " >/dev/null 2>&1 </dev/null &"
)

# The debounce time is long enough that files saved one after the other are one save on a busy machine, too.
SETTINGS = f'setup = "{SETUP}"\ndebounce_ms = 60\ntransition_timeout = 4.0\n'


def never_edited() -> dict[str, str]:
    """Return the content of each file that is never edited, by name."""
    return {"fixed.c": FIXED, "Kbuild": KBUILD, "hotreload.toml": SETTINGS}
