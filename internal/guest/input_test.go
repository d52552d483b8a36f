package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

func TestStdin(t *testing.T) {
	a := start(t)
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	var out bytes.Buffer
	exit, err := a.client.Run(t.Context(), guestclient.Command{Argv: []string{"cat"}, User: "root"}, bytes.NewReader(data), &out, io.Discard)
	if err != nil || exit.Code != 0 || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("%d of %d bytes came back, %+v, %v", out.Len(), len(data), exit, err)
	}
	// Without input, reading ends at once.
	if out, _, exit := a.sh(t, "cat; echo end"); out != "end\n" || exit.Code != 0 {
		t.Errorf("%q %+v", out, exit)
	}
}

func TestStdinOfProcessThatDoesNotRead(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"sleep", "1000"}, User: "root", Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	big := make([]byte, 1<<20)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = a.procs.SendInput(ctx, connect.NewRequest(&processpb.SendInputRequest{Process: pidSelector(p.PID), Input: stdin(big)}))
	if connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("a write that cannot go on: %v", err)
	}
	// The next writer is not cut short by the deadline of the one before, but by the process's end.
	wrote := make(chan error, 1)
	go func() {
		_, err := a.procs.SendInput(t.Context(), connect.NewRequest(&processpb.SendInputRequest{Process: pidSelector(p.PID), Input: stdin(big)}))
		wrote <- err
	}()
	if err := p.Signal(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; connect.CodeOf(err) != connect.CodeFailedPrecondition && connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a write to a process that was killed: %v", err)
	}
}

func pidSelector(pid int) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: uint32(pid)}}
}

func stdin(data []byte) *processpb.ProcessInput {
	return &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: data}}
}

func TestSendInputAndCloseStdin(t *testing.T) {
	a := start(t)
	p, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"cat"}, User: "root", Stdin: true, Tag: "the cat"})
	if err != nil {
		t.Fatal(err)
	}
	byTag := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: "the cat"}}
	if _, err := a.procs.SendInput(t.Context(), connect.NewRequest(&processpb.SendInputRequest{Process: byTag, Input: stdin([]byte("meow"))})); err != nil {
		t.Fatal(err)
	}
	if _, data, _, err := p.Next(); err != nil || string(data) != "meow" {
		t.Fatalf("%q, %v", data, err)
	}
	if err := p.CloseStdin(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Closing again is no error as long as there is a process.
	if err := p.CloseStdin(t.Context()); err != nil && !tartarus.Is(err, tartarus.NotFound) {
		t.Fatal(err)
	}
	if exit, err := p.Copy(io.Discard, io.Discard); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

func TestInputErrors(t *testing.T) {
	a := start(t)
	quiet, err := a.client.Start(t.Context(), guestclient.Command{Argv: []string{"sleep", "1000"}, User: "root"})
	if err != nil {
		t.Fatal(err)
	}
	defer quiet.Close()
	pty := &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte("x")}}
	for name, c := range map[string]struct {
		sel  *processpb.ProcessSelector
		in   *processpb.ProcessInput
		code connect.Code
	}{
		"no stdin":    {pidSelector(quiet.PID), stdin([]byte("x")), connect.CodeFailedPrecondition},
		"no terminal": {pidSelector(quiet.PID), pty, connect.CodeFailedPrecondition},
		"no input":    {pidSelector(quiet.PID), nil, connect.CodeInvalidArgument},
		"no selector": {nil, stdin([]byte("x")), connect.CodeInvalidArgument},
		"unknown":     {pidSelector(4_000_000), stdin([]byte("x")), connect.CodeNotFound},
	} {
		_, err := a.procs.SendInput(t.Context(), connect.NewRequest(&processpb.SendInputRequest{Process: c.sel, Input: c.in}))
		if connect.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.procs.SendSignal(t.Context(), connect.NewRequest(&processpb.SendSignalRequest{Process: pidSelector(quiet.PID)})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no signal: %v", err)
	}
	if err := quiet.Resize(t.Context(), guestclient.Size{Cols: 1, Rows: 1}); !tartarus.Is(err, tartarus.Conflict) {
		t.Errorf("resize without terminal: %v", err)
	}
	stream := a.procs.StreamInput(t.Context())
	if err := stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Data{Data: &processpb.StreamInputRequest_DataEvent{Input: stdin([]byte("x"))}}}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndReceive(); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("data before start: %v", err)
	}
}
