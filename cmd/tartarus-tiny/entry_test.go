package main_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What is done before Go begins is what Go's applets do, which are reached by argument.
func TestEntryIsTheApplet(t *testing.T) {
	long := strings.Repeat("x", 4000)
	for _, argv := range [][]string{
		{"true"}, {"true", "--help"}, {"false"}, {"false", "x"},
		{"echo"}, {"echo", ""}, {"echo", "", ""}, {"echo", "a", "", "b  c", "\\n"}, {"echo", "a", "-n"},
		{"echo", "-n", "a"}, {"echo", "-e", `a\tb`}, {"echo", "-", "a"}, {"echo", "--", "a"}, {"echo", "-x"},
		{"echo", long}, {"echo", long, strings.Repeat("y", 86)}, {"echo", long, strings.Repeat("y", 87)}, {"echo", long, strings.Repeat("y", 88)},
		{"echo", long, strings.Repeat("y", 2000)}, append([]string{"echo"}, make([]string, 4086)...), append([]string{"echo"}, make([]string, 4095)...),
		append([]string{"echo"}, make([]string, 9000)...),
	} {
		outcome := func(argv []string) (string, int) {
			out, err := command(t, t.TempDir(), argv...).Output()
			if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
				t.Fatal(err)
			}
			code := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				code = exit.ExitCode()
			}
			return string(out), code
		}
		got, code := outcome(argv)
		want, wantCode := outcome(slices.Concat([]string{"tartarus-tiny"}, argv))
		if got != want || code != wantCode {
			t.Errorf("%.60q: %.60q and %d, the applet gives %.60q and %d", argv, got, code, want, wantCode)
		}
		if plain := strings.Join(argv[1:], " ") + "\n"; argv[0] == "echo" && (len(argv) == 1 || !strings.HasPrefix(argv[1], "-")) && want != plain {
			t.Errorf("%.60q: the applet gives %.60q", argv, want)
		}
	}
}

func TestEchoSaysWhatFails(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("needs /dev/full: %v", err)
	}
	defer full.Close()
	cmd := command(t, t.TempDir(), "echo", "x")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = full, &said
	if err := cmd.Run(); err == nil || !strings.Contains(said.String(), "no space left") {
		t.Errorf("%v: %q", err, said.String())
	}
}
