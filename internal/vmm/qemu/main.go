package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// jailName is how this program is started to become a QEMU: its own name on the host, followed by the machine's folder.
const jailName = "tartarus-qemu:"

// jailFile is the descriptor from which the process that becomes QEMU reads what to be.
const jailFile = 3

// Main must be called first thing in main, and in TestMain of tests that boot machines. QEMU is started by this very program, under
// another name, which shuts itself in first: when this process is that one, Main becomes QEMU and never returns. Otherwise it returns at
// once and has done nothing.
func Main() {
	if len(os.Args) != 1 || !strings.HasPrefix(os.Args[0], jailName) {
		return
	}
	err := enter()
	fmt.Fprintln(os.Stderr, "enter jail:", err)
	os.Exit(1)
}

// enter reads the order, shuts the process in and runs QEMU.
func enter() error {
	f := os.NewFile(jailFile, "jail")
	var j jail
	err := json.NewDecoder(f).Decode(&j)
	if err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	_ = f.Close()
	return j.run()
}
