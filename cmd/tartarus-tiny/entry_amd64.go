package main

// entry is where the program begins when it is linked with -E main.entry, as in the template: echo without options, true and false are
// done there, everything else goes on to Go's own beginning. Starting Go's runtime takes some two hundred system calls, each of which is
// dear where a sentry answers them: an echo is twice as fast without.
func entry()

var _ = entry // nothing calls it: the kernel does
