package process

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// Service is the Connect service process.Process over a Manager.
type Service struct {
	*Manager
}

// List implements processconnect.ProcessHandler.
func (s Service) List(context.Context, *connect.Request[processpb.ListRequest]) (*connect.Response[processpb.ListResponse], error) {
	res := &processpb.ListResponse{}
	for _, p := range s.Manager.List() {
		res.Processes = append(res.Processes, &processpb.ProcessInfo{Config: p.Config, Pid: uint32(p.PID), Tag: p.Tag})
	}
	return connect.NewResponse(res), nil
}

// Start implements processconnect.ProcessHandler.
func (s Service) Start(ctx context.Context, req *connect.Request[processpb.StartRequest], stream *connect.ServerStream[processpb.StartResponse]) error {
	u, err := s.settings.Caller(req.Header())
	if err != nil {
		return fault.Connect(err)
	}
	var timeout time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		// A deadline that has passed already still means that the process is killed, never that it is unlimited.
		timeout = max(time.Until(deadline), time.Nanosecond)
	}
	p, sub, err := s.Manager.Start(u, req.Msg, timeout)
	if err != nil {
		return fault.Connect(err)
	}
	defer sub.Close()
	defer cutWhenDone(ctx)()
	return follow(ctx, p, sub, req.Header(), func(e *processpb.ProcessEvent) error {
		return stream.Send(&processpb.StartResponse{Event: e})
	})
}

// Connect implements processconnect.ProcessHandler.
func (s Service) Connect(ctx context.Context, req *connect.Request[processpb.ConnectRequest], stream *connect.ServerStream[processpb.ConnectResponse]) error {
	p, err := s.Find(req.Msg.GetProcess())
	if err != nil {
		return fault.Connect(err)
	}
	sub := p.Attach()
	defer sub.Close()
	defer cutWhenDone(ctx)()
	return follow(ctx, p, sub, req.Header(), func(e *processpb.ProcessEvent) error {
		return stream.Send(&processpb.ConnectResponse{Event: e})
	})
}

// follow sends what happens to p until it ends, the client goes or its time is up.
func follow(ctx context.Context, p *Process, sub *Subscription, h http.Header, send func(*processpb.ProcessEvent) error) error {
	err := send(&processpb.ProcessEvent{Event: &processpb.ProcessEvent_Start{Start: &processpb.ProcessEvent_StartEvent{Pid: uint32(p.PID)}}})
	if err != nil {
		return err
	}
	interval := KeepaliveInterval(h)
	quiet := time.NewTimer(interval)
	defer quiet.Stop()
	for {
		select {
		case c := <-sub.Chunks():
			err = send(dataEvent(c))
			quiet.Reset(interval)
		case <-p.Done():
			return last(ctx, p, sub, send)
		case <-quiet.C:
			err = send(&processpb.ProcessEvent{Event: &processpb.ProcessEvent_Keepalive{Keepalive: &processpb.ProcessEvent_KeepAlive{}}})
			quiet.Reset(interval)
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// last sends what is still queued and how p ended.
func last(ctx context.Context, p *Process, sub *Subscription, send func(*processpb.ProcessEvent) error) error {
	for {
		select {
		case c := <-sub.Chunks():
			if err := send(dataEvent(c)); err != nil {
				return err
			}
			continue
		default:
		}
		break
	}
	end := p.End()
	if deadline, ok := ctx.Deadline(); ok && end.timedOut && time.Until(deadline) <= 0 {
		// The client learns that its time was up, not merely that something killed the process.
		return context.DeadlineExceeded
	}
	e := &processpb.ProcessEvent_EndEvent{ExitCode: end.ExitCode, Exited: end.Exited, Status: end.Status}
	if end.Error != "" {
		e.Error = &end.Error
	}
	hold(ctx)
	return send(&processpb.ProcessEvent{Event: &processpb.ProcessEvent_End{End: e}})
}

func dataEvent(c Chunk) *processpb.ProcessEvent {
	e := &processpb.ProcessEvent_DataEvent{}
	switch c.Stream {
	case spawn.Stdout:
		e.Output = &processpb.ProcessEvent_DataEvent_Stdout{Stdout: c.Data}
	case spawn.Stderr:
		e.Output = &processpb.ProcessEvent_DataEvent_Stderr{Stderr: c.Data}
	case spawn.PTY:
		e.Output = &processpb.ProcessEvent_DataEvent_Pty{Pty: c.Data}
	}
	return &processpb.ProcessEvent{Event: &processpb.ProcessEvent_Data{Data: e}}
}

// The pause after which a silent stream sends a sign of life.
const (
	defaultKeepalive = 90 * time.Second
	maxKeepalive     = 3600
)

// KeepaliveInterval is how often a stream must show life, as its client asked in Keepalive-Ping-Interval (seconds).
func KeepaliveInterval(h http.Header) time.Duration {
	n, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || n < 1 || n > maxKeepalive {
		return defaultKeepalive
	}
	return time.Duration(n) * time.Second
}

// Update implements processconnect.ProcessHandler.
func (s Service) Update(_ context.Context, req *connect.Request[processpb.UpdateRequest]) (*connect.Response[processpb.UpdateResponse], error) {
	p, err := s.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, fault.Connect(err)
	}
	if req.Msg.GetPty() != nil {
		if p.terminal == nil {
			return nil, fault.Connect(tartarus.Errorf(tartarus.Conflict, "process %d has no terminal", p.PID))
		}
		size := req.Msg.GetPty().GetSize()
		if err := p.terminal.Resize(size.GetCols(), size.GetRows()); err != nil {
			return nil, fault.Connect(err)
		}
	}
	return connect.NewResponse(&processpb.UpdateResponse{}), nil
}

// SendInput implements processconnect.ProcessHandler.
func (s Service) SendInput(ctx context.Context, req *connect.Request[processpb.SendInputRequest]) (*connect.Response[processpb.SendInputResponse], error) {
	p, err := s.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, fault.Connect(err)
	}
	if err := p.feed(ctx, req.Msg.GetInput()); err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(&processpb.SendInputResponse{}), nil
}

// StreamInput implements processconnect.ProcessHandler. Each message is written before the next is read, so that
// the network's flow control holds the client back.
func (s Service) StreamInput(ctx context.Context, stream *connect.ClientStream[processpb.StreamInputRequest]) (*connect.Response[processpb.StreamInputResponse], error) {
	var p *Process
	for stream.Receive() {
		var err error
		switch e := stream.Msg().GetEvent().(type) {
		case *processpb.StreamInputRequest_Start:
			if p != nil {
				return nil, fault.Connect(tartarus.Errorf(tartarus.Invalid, "the stream selects a process twice"))
			}
			p, err = s.findLive(e.Start.GetProcess())
		case *processpb.StreamInputRequest_Data:
			if p == nil {
				return nil, fault.Connect(tartarus.Errorf(tartarus.Invalid, "the stream sends data before it selects a process"))
			}
			err = p.feed(ctx, e.Data.GetInput())
		case *processpb.StreamInputRequest_Keepalive:
		default:
			err = tartarus.Errorf(tartarus.Invalid, "the stream sends a message without an event")
		}
		if err != nil {
			return nil, fault.Connect(err)
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return connect.NewResponse(&processpb.StreamInputResponse{}), nil
}

// SendSignal implements processconnect.ProcessHandler.
func (s Service) SendSignal(_ context.Context, req *connect.Request[processpb.SendSignalRequest]) (*connect.Response[processpb.SendSignalResponse], error) {
	var sig unix.Signal
	switch req.Msg.GetSignal() {
	case processpb.Signal_SIGNAL_SIGINT:
		sig = unix.SIGINT
	case processpb.Signal_SIGNAL_SIGTERM:
		sig = unix.SIGTERM
	case processpb.Signal_SIGNAL_SIGKILL:
		sig = unix.SIGKILL
	default:
		return nil, fault.Connect(tartarus.Errorf(tartarus.Invalid, "signal %d cannot be sent", req.Msg.GetSignal()))
	}
	p, err := s.findLive(req.Msg.GetProcess())
	if err == nil {
		err = s.Signal(p, sig)
	}
	if err != nil {
		return nil, fault.Connect(err)
	}
	return connect.NewResponse(&processpb.SendSignalResponse{}), nil
}

// CloseStdin implements processconnect.ProcessHandler.
func (s Service) CloseStdin(_ context.Context, req *connect.Request[processpb.CloseStdinRequest]) (*connect.Response[processpb.CloseStdinResponse], error) {
	p, err := s.findLive(req.Msg.GetProcess())
	if err != nil {
		return nil, fault.Connect(err)
	}
	if p.terminal != nil {
		return nil, fault.Connect(tartarus.Errorf(tartarus.Conflict, "process %d has a terminal: send it Ctrl-D instead", p.PID))
	}
	if p.stdin != nil {
		if err := p.stdin.finish(errInputClosed); err != nil {
			return nil, fault.Connect(err)
		}
	}
	return connect.NewResponse(&processpb.CloseStdinResponse{}), nil
}

// findLive is Find for calls that make no sense once a process has ended.
func (s Service) findLive(sel *processpb.ProcessSelector) (*Process, error) {
	p, err := s.Find(sel)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exit:
		return nil, tartarus.Errorf(tartarus.NotFound, "process with pid %d not found", p.PID)
	default:
		return p, nil
	}
}

// feed writes one piece of input to the pipe or terminal it is meant for.
func (p *Process) feed(ctx context.Context, in *processpb.ProcessInput) error {
	switch v := in.GetInput().(type) {
	case *processpb.ProcessInput_Stdin:
		if p.terminal != nil {
			return tartarus.Errorf(tartarus.Conflict, "process %d has a terminal: send input to the pty, not to stdin", p.PID)
		}
		if p.stdin == nil {
			return errInputClosed
		}
		return p.stdin.write(ctx, v.Stdin)
	case *processpb.ProcessInput_Pty:
		if p.terminal == nil {
			return tartarus.Errorf(tartarus.Conflict, "process %d has no terminal: send input to stdin", p.PID)
		}
		return p.stdin.write(ctx, v.Pty)
	}
	return tartarus.Errorf(tartarus.Invalid, "the request carries no input")
}
