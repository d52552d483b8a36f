package process

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/journal"
	"github.com/tartarus-sandbox/tartarus/internal/guest/settings"
	"github.com/tartarus-sandbox/tartarus/internal/guest/spawn"
)

// Config wires a Manager.
type Config struct {
	Settings *settings.Store
	Journal  *journal.Journal // gets the lines processes print
	Log      *slog.Logger     // gets starts and ends
	// Reap makes the Manager collect every dead child of the program, for an agent that is init or a
	// subreaper. Nothing else in the program may have children then.
	Reap  bool
	Group *os.File // control group that processes start in; nil leaves them in the program's own
}

// Manager holds the processes that clients started. It is safe for concurrent use.
type Manager struct {
	settings *settings.Store
	journal  *journal.Journal
	log      *slog.Logger
	reap     bool
	group    *os.File
	started  chan struct{} // wakes reapAll; holds at most one token

	mu      sync.Mutex
	seq     uint64
	running map[int]*Process      // by number: those not yet collected
	live    map[*Process]struct{} // those whose end is not yet known to clients
	past    []*Process            // those that ended, oldest first; see remember
	sweep   *time.Timer           // forgets the oldest of past
	orphans map[*os.File]struct{} // pipes that outlived the process they were made for
	spares  spares
	closed  bool
}

// New makes a Manager without processes. With Config.Reap, Run must run for processes to end.
func New(c Config) *Manager {
	return &Manager{
		settings: c.Settings, journal: c.Journal, log: c.Log, reap: c.Reap, group: c.Group, started: make(chan struct{}, 1),
		running: make(map[int]*Process), live: make(map[*Process]struct{}), orphans: make(map[*os.File]struct{}),
	}
}

// Run collects dead children until ctx ends, and then kills what is left. After that no process starts.
func (m *Manager) Run(ctx context.Context) error {
	if m.reap {
		// It blocks in the kernel while there are children, so Run does not wait for it.
		go m.reapAll(ctx)
	}
	<-ctx.Done()
	m.close()
	return nil
}

// Start runs a command for u and returns a Subscription that sees all of its output. A positive timeout
// kills the process and its whole session when it has passed.
func (m *Manager) Start(u account.User, req *processpb.StartRequest, timeout time.Duration) (*Process, *Subscription, error) {
	set := m.settings.Load()
	config := req.GetProcess()
	dir, err := u.Resolve(config.GetCwd(), set.Workdir)
	if err != nil {
		return nil, nil, err
	}
	plan, err := spawn.Prepare(u, config.GetCmd(), config.GetArgs(), dir, set.Env, config.GetEnvs())
	if err != nil {
		return nil, nil, err
	}
	w, err := m.wire(u, req)
	if err != nil {
		return nil, nil, err
	}
	p := &Process{
		Tag: req.Tag, Config: config, terminal: w.Terminal, outputs: w.Outputs,
		exit: make(chan struct{}), done: make(chan struct{}),
	}
	if w.Stdin != nil {
		p.stdin = newInput(w.Stdin)
	}
	sub := p.Attach()
	if err := m.launch(p, plan, w, timeout); err != nil {
		return nil, nil, err
	}
	m.log.Info("process started", "pid", p.PID, "user", u.Name, "command", cut(config), "cwd", dir)
	return p, sub, nil
}

func (m *Manager) wire(u account.User, req *processpb.StartRequest) (*spawn.Wires, error) {
	if req.GetPty() == nil {
		return m.spares.take(req.Stdin == nil || req.GetStdin())
	}
	size := req.GetPty().GetSize()
	return spawn.TTY(u, size.GetCols(), size.GetRows())
}

// launch starts the program and puts p into the table, as one step for those who collect.
func (m *Manager) launch(p *Process, plan *spawn.Plan, w *spawn.Wires, timeout time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		w.Close()
		return tartarus.Errorf(tartarus.Unavailable, "the sandbox is shutting down")
	}
	plan.Group = m.group
	pid, err := plan.Start(w)
	if err != nil {
		return err
	}
	p.PID = pid
	m.seq++
	p.seq = m.seq
	m.running[pid] = p
	m.live[p] = struct{}{}
	if timeout > 0 {
		p.timer = time.AfterFunc(timeout, func() { m.expire(p) })
	}
	p.readers.Add(len(p.outputs))
	for _, o := range p.outputs {
		go m.read(p, o)
	}
	go m.conclude(p)
	if !m.reap {
		go m.reapOne(p)
		return nil
	}
	select {
	case m.started <- struct{}{}:
	default:
	}
	return nil
}

// conclude waits for the end of p and makes it known.
func (m *Manager) conclude(p *Process) {
	<-p.exit
	if p.terminal != nil {
		p.terminal.Release() // ours was the last but for children that stay, see hangup
	}
	for _, o := range p.outputs {
		_ = o.File.SetReadDeadline(time.Unix(1, 0)) // a reader that closed it already needs no wake-up
	}
	p.readers.Wait()
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.stdin != nil {
		_ = p.stdin.finish(errProcessGone) // closing a pipe whose reader is gone cannot lose anything
	}
	p.end = endOf(p.status)
	p.mu.Lock()
	p.end.timedOut = p.expired
	p.mu.Unlock()
	m.remember(p)
	close(p.done)
	if p.terminal == nil {
		m.spares.refill(p.stdin != nil)
	}
	m.log.Info("process ended", "pid", p.PID, "status", p.end.Status)
}

// Find returns the process that the selector names: a running one, or one that ended a short while ago.
// Of several with one tag it is the one started last.
func (m *Manager) Find(sel *processpb.ProcessSelector) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch s := sel.GetSelector().(type) {
	case *processpb.ProcessSelector_Pid:
		if p := m.newest(func(p *Process) bool { return p.PID == int(s.Pid) }); p != nil {
			return p, nil
		}
		return nil, tartarus.Errorf(tartarus.NotFound, "process with pid %d not found", s.Pid)
	case *processpb.ProcessSelector_Tag:
		if p := m.newest(func(p *Process) bool { return p.Tag != nil && *p.Tag == s.Tag }); p != nil {
			return p, nil
		}
		return nil, tartarus.Errorf(tartarus.NotFound, "process with tag '%s' not found", s.Tag)
	}
	return nil, tartarus.Errorf(tartarus.Invalid, "the request selects no process")
}

// List returns the processes that run, by number.
func (m *Manager) List() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]*Process, 0, len(m.running))
	for _, p := range m.running {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b *Process) int { return a.PID - b.PID })
	return list
}
