package guest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	processpb "github.com/tartarus-sandbox/tartarus/api/gen/process"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/hostapi"
	"github.com/tartarus-sandbox/tartarus/internal/guest/process"
)

// maxHooks bounds how many hooks run; what comes after is not looked at.
const maxHooks = 64

// terminate answers POST /terminate. When the host takes its question back, hooks that run are ended and nobody else is asked anything.
func (a *Agent) terminate(w http.ResponseWriter, r *http.Request) {
	var req hostapi.Terminate
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil && !errors.Is(err, io.EOF) {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "read the body: %w", err))
		return
	}
	if req.GraceMs < 0 || req.GraceMs > maxGrace.Milliseconds() || len(req.Reason) > 64 {
		fault.HTTP(w, tartarus.Errorf(tartarus.Invalid, "graceMs must be between 0 and %d, and a reason one word", maxGrace.Milliseconds()))
		return
	}
	if !a.terminating.TryLock() {
		fault.HTTP(w, tartarus.Errorf(tartarus.Conflict, "a termination is under way"))
		return
	}
	defer a.terminating.Unlock()
	ctx, cancel := context.WithTimeout(r.Context(), time.Duration(req.GraceMs)*time.Millisecond)
	defer cancel()
	a.log.Info("asked to end", "reason", req.Reason, "grace_ms", req.GraceMs)
	out := hostapi.Terminated{Hooks: a.hooks(ctx, req), Alive: []int{}}
	if deadline, _ := ctx.Deadline(); !req.HooksOnly && r.Context().Err() == nil {
		if alive := a.processes.Terminate(ctx, time.Until(deadline)); alive != nil {
			out.Alive = alive
		}
	}
	answer(w, out)
}

// hooks runs the guest's hooks one after the other. Together they have three quarters of the grace, so that one that hangs leaves the other processes
// time to end in good order.
func (a *Agent) hooks(ctx context.Context, req hostapi.Terminate) []hostapi.Hook {
	ran := []hostapi.Hook{}
	dir := filepath.Join(a.config.Root, hostapi.HooksDir)
	names, err := hookNames(dir)
	if err != nil {
		a.log.Warn("hooks not listed", "error", err)
	}
	if len(names) == 0 {
		return ran
	}
	grace := time.Duration(req.GraceMs) * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, grace*3/4)
	defer cancel()
	for _, name := range names {
		h := hostapi.Hook{Name: name}
		if err := a.hook(ctx, filepath.Join(dir, name), req.Reason); err != nil {
			h.Error = err.Error()
			a.log.Warn("hook failed", "hook", name, "error", h.Error)
		}
		ran = append(ran, h)
	}
	return ran
}

// hookNames lists the executables of a folder by name. Hidden files, and those that editors leave behind, are none.
func hookNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
			continue
		}
		st, err := os.Stat(filepath.Join(dir, name)) // through a link
		if err == nil && st.Mode().IsRegular() && st.Mode().Perm()&0o111 != 0 && len(names) < maxHooks {
			names = append(names, name)
		}
	}
	return names, nil
}

// hook runs one hook to its end or to that of its time.
func (a *Agent) hook(ctx context.Context, file, reason string) error {
	root, err := a.hookUser()
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	if left <= 0 || ctx.Err() != nil {
		return tartarus.Errorf(tartarus.Deadline, "no time was left for it")
	}
	input, folder := false, "/"
	p, sub, err := a.processes.Start(root, &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: file, Cwd: &folder, Envs: map[string]string{
			"TARTARUS_REASON": reason, "TARTARUS_GRACE_SECONDS": strconv.FormatFloat(left.Seconds(), 'f', 1, 64),
		}},
		Stdin: &input,
	}, left)
	if err != nil {
		return err
	}
	sub.Close() // the journal has what it prints
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = a.processes.Signal(p, syscall.SIGKILL) // it may have ended by now
		<-p.Done()
	}
	return hookError(ctx, p)
}

func hookError(ctx context.Context, p *process.Process) error {
	switch end := p.End(); {
	case end.Exited && end.ExitCode == 0:
		return nil
	case ctx.Err() != nil:
		return tartarus.Errorf(tartarus.Deadline, "it did not end in its time")
	default:
		return tartarus.Errorf(tartarus.Internal, "%s", end.Status)
	}
}

// hookUser is root, or whoever the agent is where it is not.
func (a *Agent) hookUser() (account.User, error) {
	if os.Geteuid() == 0 {
		return a.settings.Book().Lookup("root")
	}
	return account.User{Name: "agent", UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Home: "/"}, nil
}
