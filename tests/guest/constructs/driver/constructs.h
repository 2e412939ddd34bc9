/* SPDX-License-Identifier: GPL-2.0 */
/*
 * constructs - a function for each thing that says something about code
 *
 * Each unit fills one file, /proc/constructs/UNIT. What it does there depends on the module's
 * parameter "input".
 */
#ifndef CONSTRUCTS_H
#define CONSTRUCTS_H

#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/seq_file.h>

extern long input;

int faults_show(struct seq_file *m, void *v);
int features_show(struct seq_file *m, void *v);
int keys_show(struct seq_file *m, void *v);
int later_show(struct seq_file *m, void *v);
int offers_show(struct seq_file *m, void *v);
int percpu_show(struct seq_file *m, void *v);
int sites_show(struct seq_file *m, void *v);
int state_show(struct seq_file *m, void *v);
int texts_show(struct seq_file *m, void *v);
int tracing_show(struct seq_file *m, void *v);
int untraced_show(struct seq_file *m, void *v);
int warn_show(struct seq_file *m, void *v);

int offered(int n);
int untraced_elsewhere(int n);

#endif
