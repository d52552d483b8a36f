// Package olympus is the control-plane API: it authenticates, judges, places and queues what clients ask for, and
// forwards to the nodes what concerns a running sandbox. It keeps nothing in memory that another replica would miss.
package olympus
