package firecracker

import (
	"context"
)

// workingName is the folder with the working sets of snapshots.
const workingName = "working"

// pagesProgram is the name that page-fault handlers go by.
const pagesProgram = "tartarus-pages"

// PageFaults says where a restored machine's memory comes from.
type PageFaults string

// Ways of memory.
const (
	// MapFile maps the memory file privately: the kernel brings its pages in, and clones share them.
	MapFile PageFaults = ""
)

// memory is where m's memory comes from.
func (d *Driver) memory(context.Context, *machine, *stored) (Backend, error) {
	return Backend{Kind: BackendFile, Path: "/" + memoryName}, nil
}

func (m *machine) watchPages(context.Context) {}
