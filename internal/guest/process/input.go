package process

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// input is where a process reads from: a pipe or a terminal. Writes come one after the other and wait until
// the process takes them.
type input struct {
	file  *os.File
	turn  chan struct{} // holds one token; who has it writes
	mu    sync.Mutex
	state error // why no more can be written; nil while open
}

func newInput(file *os.File) *input {
	in := &input{file: file, turn: make(chan struct{}, 1)}
	in.turn <- struct{}{}
	return in
}

var (
	errInputClosed = tartarus.Errorf(tartarus.Conflict, "stdin is not enabled, or it is closed")
	errProcessGone = tartarus.Errorf(tartarus.Conflict, "the process no longer reads its input")
)

// write writes all of data, or as much as the process takes before ctx ends.
func (in *input) write(ctx context.Context, data []byte) error {
	select {
	case <-in.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { in.turn <- struct{}{} }()
	in.mu.Lock()
	state := in.state
	in.mu.Unlock()
	if state != nil {
		return state
	}
	if err := in.file.SetWriteDeadline(time.Time{}); err != nil {
		return errProcessGone
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = in.file.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	defer func() {
		if !stop() {
			<-fired // else it could cut the next write short
		}
	}()
	_, err := in.file.Write(data)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	}
	// A broken pipe, or a file that was closed because the process ended.
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != nil {
		return in.state
	}
	return errProcessGone
}

// finish closes the input for the given reason. A write that waits returns. Later calls do nothing.
func (in *input) finish(reason error) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.state != nil {
		return nil
	}
	in.state = reason
	return in.file.Close()
}
