package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// trapTable holds what to do on signals. The interpreter itself knows EXIT and ERR only.
type trapTable struct {
	mu      sync.Mutex
	actions map[syscall.Signal]string
	pending []string
	last    syscall.Signal // that came
	arrived chan struct{}  // has one element while something is pending
	signals chan os.Signal
}

func newTrapTable() *trapTable {
	return &trapTable{actions: map[syscall.Signal]string{}, arrived: make(chan struct{}, 1)}
}

func (t *trapTable) empty() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.actions) == 0
}

// set says what happens on sig: "-" the default, "" nothing.
func (t *trapTable) set(sig syscall.Signal, action string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.signals == nil {
		t.signals = make(chan os.Signal, 16)
		go t.receive()
	}
	switch action {
	case "-":
		delete(t.actions, sig)
		signal.Reset(sig)
	case "":
		t.actions[sig] = ""
		signal.Ignore(sig)
	default:
		t.actions[sig] = action
		signal.Notify(t.signals, sig)
	}
}

func (t *trapTable) receive() {
	for sig := range t.signals {
		t.mu.Lock()
		if action := t.actions[sig.(syscall.Signal)]; action != "" && len(t.pending) < 64 {
			t.pending, t.last = append(t.pending, action), sig.(syscall.Signal)
			select {
			case t.arrived <- struct{}{}:
			default:
			}
		}
		t.mu.Unlock()
	}
}

// settle gives a signal that the shell sent itself the time to arrive, as it would have without goroutines.
func (t *trapTable) settle() {
	select {
	case <-t.arrived:
		t.arrived <- struct{}{}
	case <-time.After(100 * time.Millisecond):
	}
}

// next takes the actions of all signals that came since the last call.
func (t *trapTable) next() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	action := strings.Join(t.pending, "\n")
	t.pending = nil
	select {
	case <-t.arrived:
	default:
	}
	return action
}

// signalNumber reads INT, SIGINT or 2.
func signalNumber(name string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return syscall.Signal(n), n >= 0 && n <= 64
	}
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	sig := unix.SignalNum(name)
	return sig, sig != 0
}

// trap handles signals here and leaves EXIT and ERR to the interpreter.
func (s *session) trap(out io.Writer, args []string) []string {
	rest := args[1:]
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if len(rest) == 0 {
		s.traps.mu.Lock()
		defer s.traps.mu.Unlock()
		for sig, action := range s.traps.actions {
			fmt.Fprintf(out, "trap -- %s %s\n", quote([]string{action}), unix.SignalName(sig))
		}
		return args
	}
	action, names := rest[0], rest[1:]
	if len(names) == 0 {
		action, names = "-", rest
	}
	theirs := []string{"trap", action}
	for _, name := range names {
		if up := strings.ToUpper(name); up == "EXIT" || up == "ERR" || name == "0" {
			if name == "0" {
				up = "EXIT"
			}
			theirs = append(theirs, up)
			// The interpreter runs it; it only must not be lost to a replaced process.
			s.traps.mu.Lock()
			s.traps.actions[0] = action
			s.traps.mu.Unlock()
			continue
		}
		sig, ok := signalNumber(name)
		if !ok {
			fmt.Fprintf(os.Stderr, "trap: %s: invalid signal specification\n", name)
			return status(1)
		}
		if sig != syscall.SIGKILL && sig != syscall.SIGSTOP {
			s.traps.set(sig, action)
		}
	}
	if len(theirs) > 2 {
		return theirs
	}
	return status(0)
}

// ignoreKeys keeps an interactive shell alive when a key stops the command in front of it.
func (s *session) ignoreKeys() (stop func()) {
	keys := make(chan os.Signal, 1)
	signal.Notify(keys, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTSTP, syscall.SIGTERM)
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case <-keys:
			case <-quit:
				return
			}
		}
	}()
	return func() { signal.Stop(keys); close(quit) }
}
