package boot

import (
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A signal that was given back is neither handled here nor ignored by the processes that are started.
func TestForgottenSignalHasItsDefault(t *testing.T) {
	mask := func(status []byte, name string) uint64 {
		t.Helper()
		found := regexp.MustCompile(`(?m)^` + name + `:\s+([0-9a-f]+)$`).FindSubmatch(status)
		if found == nil {
			t.Skip("needs the signal masks of /proc")
		}
		n, err := strconv.ParseUint(string(found[1]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	own := func() []byte {
		t.Helper()
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		return status
	}
	before := own()
	if err := forgetChildren(); err != nil {
		t.Fatal(err)
	}
	after := own()
	if handled := mask(after, "SigCgt"); handled&(1<<(unix.SIGCHLD-1)) != 0 || handled == 0 {
		t.Errorf("handled are %x", handled)
	}
	if was, is := mask(before, "SigIgn"), mask(after, "SigIgn"); was != is {
		t.Errorf("ignored were %x, are %x", was, is)
	}
	child, err := exec.Command("cat", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	if was, is := mask(before, "SigIgn"), mask(child, "SigIgn"); was != is {
		t.Errorf("a process ignores %x, this one %x", is, was)
	}
}
