package gvisor

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/process"
)

// gateEnv tells a sandbox process on which descriptor it waits before it does anything, and givenEnv which is the first that it was not given.
const (
	gateEnv  = "TARTARUS_GATE"
	givenEnv = "TARTARUS_GIVEN"
)

// selfExe is how runsc starts this program again.
const selfExe = "/proc/self/exe"

// Main must be called first thing in main, and in TestMain of tests that boot machines. A sandbox is this very
// program, started again under another name: when this process is one, Main runs it and never returns.
// Otherwise it returns at once and has done nothing.
func Main() {
	sandbox := len(os.Args) > 0 && strings.HasPrefix(filepath.Base(os.Args[0]), "runsc-")
	helper := len(os.Args) > 1 && os.Args[0] == selfExe && os.Args[1] == new(sentrycmd.Umount).Name()
	if !sandbox && !helper {
		return
	}
	awaitGate()
	limitTasks()
	// Only what a sandbox process needs: to boot, and to take /proc away before the system call filter closes.
	commands := map[util.SubCommand]string{
		new(sentrycmd.Boot):   "internal",
		new(sentrycmd.Umount): "internal",
	}
	cli.Run(nil, commands, []subcommands.Command{})
	os.Exit(1) // cli.Run exits by itself
}

// awaitGate waits until the parent has put this process into its control group: everything it allocates or forks
// later is charged there. A parent that dies before leaves nothing behind.
func awaitGate() {
	n, err := strconv.Atoi(os.Getenv(gateEnv))
	if err != nil {
		return // a helper process of a sandbox, which is in the group by birth
	}
	_ = os.Unsetenv(gateEnv)
	if err := dropStrays(); err != nil {
		os.Exit(1)
	}
	gate := os.NewFile(uintptr(n), "gate")
	if got, err := gate.Read(make([]byte, 1)); err != nil || got != 1 {
		os.Exit(1)
	}
	_ = gate.Close()
}

// dropStrays closes what this process has by accident. runsc ends the start where a stray has the number that it wants for a guest's standard streams.
func dropStrays() error {
	first, err := strconv.Atoi(os.Getenv(givenEnv))
	if err != nil {
		return err
	}
	_ = os.Unsetenv(givenEnv)
	return process.CloseStrays(first)
}

// bootFailure reads why a sandbox process gave up. The file is bounded by what runsc writes in one
// message or one stack trace.
func bootFailure(path string) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return ""
	}
	return excerpt(string(b))
}

// excerpt is what matters of a sandbox's last words, on one line and with nothing unprintable in it: a message stands
// at their beginning, before any stack.
func excerpt(s string) string {
	const most = 800
	for _, mark := range []string{"panic: ", "fatal error: "} {
		if i := strings.Index(s, mark); i > 0 {
			s = s[i:]
		}
	}
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }), " | ")
}
