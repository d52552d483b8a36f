//go:build !amd64 && !arm64

package kvm

import (
	"context"
	"os"
	"runtime"
)

// judge has no guest for this architecture, and what was not seen to run is not called usable.
func judge(_ context.Context, device string) Verdict {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	switch {
	case os.IsNotExist(err):
		return Verdict{Reason: device + " does not exist"}
	case err != nil:
		return Verdict{Present: true, Reason: err.Error()}
	}
	_ = f.Close()
	return Verdict{Present: true, Openable: true, Reason: "not judged on " + runtime.GOARCH}
}
