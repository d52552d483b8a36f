package guestclient

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
)

// inputPiece is how much input travels in one message.
const inputPiece = 32 << 10

// Feed sends everything that r yields to the process's input, or to its terminal, over one stream. It returns nil when
// r has ended and all of it is written.
func (p *Process) Feed(ctx context.Context, r io.Reader, terminal bool) error {
	stream := p.client.procs.StreamInput(ctx)
	err := stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Start{
		Start: &processpb.StreamInputRequest_StartEvent{Process: selector(p.PID)},
	}})
	buf := make([]byte, inputPiece)
	for err == nil {
		n, end := r.Read(buf)
		if n > 0 {
			err = stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Data{
				Data: &processpb.StreamInputRequest_DataEvent{Input: piece(buf[:n], terminal)},
			}})
		}
		if errors.Is(end, io.EOF) {
			break
		}
		if end != nil {
			_, _ = stream.CloseAndReceive() // what was sent stays sent
			return end
		}
	}
	// A failed Send says only that the guest ended the stream; why is in its answer.
	if _, err := stream.CloseAndReceive(); err != nil {
		return callError(err)
	}
	return nil
}

func piece(data []byte, terminal bool) *processpb.ProcessInput {
	if terminal {
		return &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: data}}
	}
	return &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: data}}
}

// CloseStdin ends the process's input.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.client.procs.CloseStdin(ctx, connect.NewRequest(&processpb.CloseStdinRequest{Process: selector(p.PID)}))
	return callError(err)
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, s Size) error {
	_, err := p.client.procs.Update(ctx, connect.NewRequest(&processpb.UpdateRequest{Process: selector(p.PID), Pty: s.wire()}))
	return callError(err)
}

// Signal sends SIGINT, SIGTERM or SIGKILL to the process. One that has ended is tartarus.NotFound.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.client.Signal(ctx, p.PID, sig)
}

// Signal is Process.Signal by number.
func (c *Client) Signal(ctx context.Context, pid int, sig syscall.Signal) error {
	if sig != syscall.SIGINT && sig != syscall.SIGTERM && sig != syscall.SIGKILL {
		return tartarus.Errorf(tartarus.Invalid, "only SIGINT, SIGTERM and SIGKILL can be sent, not %s", sig)
	}
	_, err := c.procs.SendSignal(ctx, connect.NewRequest(&processpb.SendSignalRequest{Process: selector(pid), Signal: processpb.Signal(sig)}))
	return callError(err)
}

// Info describes a process that runs.
type Info struct {
	PID  int
	Argv []string
	Env  map[string]string
	Dir  string
	Tag  string
}

// Processes lists those that were started through the agent and still run.
func (c *Client) Processes(ctx context.Context) ([]Info, error) {
	res, err := c.procs.List(ctx, connect.NewRequest(&processpb.ListRequest{}))
	if err != nil {
		return nil, callError(err)
	}
	var list []Info
	for _, p := range res.Msg.GetProcesses() {
		config := p.GetConfig()
		list = append(list, Info{
			PID: int(p.GetPid()), Argv: append([]string{config.GetCmd()}, config.GetArgs()...),
			Env: config.GetEnvs(), Dir: config.GetCwd(), Tag: p.GetTag(),
		})
	}
	return list, nil
}

// signalNumbers maps what Exit.Status says to the signal's number.
var signalNumbers = sync.OnceValue(func() map[string]int {
	numbers := make(map[string]int)
	for n := syscall.Signal(1); n <= 64; n++ {
		if unix.SignalName(n) == "" {
			continue
		}
		numbers["signal: "+n.String()] = int(n)
		numbers["signal: "+n.String()+" (core dumped)"] = int(n)
	}
	return numbers
})
