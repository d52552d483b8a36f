package cli

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/term"
)

// rawTerminal switches this process's terminal to raw mode, so that every key goes to the guest, and follows its size. restore
// must be called, may be called twice, and gives the terminal back as it was. Without a terminal on stdin nothing is
// switched, and sizes stays silent.
func (e *Env) rawTerminal() (restore func(), sizes <-chan windowSize, err error) {
	restoreMode := func() {}
	if fd, ok := isTerminal(e.Stdin); ok {
		before, err := term.MakeRaw(fd)
		if err != nil {
			return nil, nil, fmt.Errorf("switch terminal to raw mode: %w", err)
		}
		restoreMode = func() { _ = term.Restore(fd, before) }
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	out := make(chan windowSize, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-changed:
			}
			select {
			case out <- e.windowSize():
			case <-done:
				return
			}
		}
	})
	var once sync.Once
	return func() {
		once.Do(func() {
			signal.Stop(changed)
			close(done)
			wg.Wait()
			restoreMode()
		})
	}, out, nil
}

// windowSize is that of the terminal on stdin or stdout; 80 by 24, the size of a VT100, where there is none.
func (e *Env) windowSize() windowSize {
	for _, stream := range []any{e.Stdin, e.Stdout} {
		if fd, ok := isTerminal(stream); ok {
			if cols, rows, err := term.GetSize(fd); err == nil && cols > 0 && rows > 0 {
				return windowSize{cols, rows}
			}
		}
	}
	return windowSize{80, 24}
}
