package vmm

import "context"

// Examiner is a Driver that has something to say of the host, beyond whether it is usable: a list of what to see to where strangers'
// code runs.
type Examiner interface {
	// Examine looks at the host and changes nothing of it. It returns as soon as ctx ends.
	Examine(ctx context.Context) []Finding
}

// Finding is one thing that was looked at.
type Finding struct {
	Name   string
	Detail string
	Fix    string // what to do; empty where all is well
}
