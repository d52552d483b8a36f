package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/hecatoncheir"
	"github.com/tartarus-sandbox/tartarus/internal/network"
	"github.com/tartarus-sandbox/tartarus/internal/store/sqlite"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
)

// controlSocket is where, in the state folder, a running stack answers its own machine's administrator: leftovers and profiles. Whoever may open the
// file may ask.
const controlSocket = "control.sock"

// Leaks lists what is on this host though no sandbox owns it, and with remove takes it away. A running server is asked, because only it
// knows what it is about to use; otherwise the journal of the data folder says what is owned.
func Leaks(ctx context.Context, cfg Config, remove bool) ([]vmm.Leftover, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	found, err := askRunning(ctx, filepath.Join(cfg.DataDir, controlSocket), remove)
	if !errors.Is(err, errNotRunning) {
		return found, err
	}
	if os.Geteuid() != 0 {
		return nil, tartarus.Errorf(tartarus.Unsupported, "looking for leaks needs root, as making sandboxes does")
	}
	log := slog.New(slog.DiscardHandler)
	found, err = abandonedLeaks(ctx, cfg, log, remove)
	if err != nil {
		return nil, err
	}
	more, err := stoppedLeaks(ctx, cfg, log, remove)
	return append(found, more...), err
}

// stoppedLeaks looks for leaks of the data folder's own stack, which does not run.
func stoppedLeaks(ctx context.Context, cfg Config, log *slog.Logger, remove bool) (found []vmm.Leftover, err error) {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, storeFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no stack ever ran here
	}
	db, err := sqlite.Open(ctx, sqlite.Default(filepath.Join(cfg.DataDir, storeFile)))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	owned, err := hecatoncheir.Recorded(ctx, db.Journal())
	if err != nil {
		return nil, err
	}
	drivers, err := openDrivers(cfg, cfg.DataDir, nil, log)
	if err != nil {
		return nil, err
	}
	for _, d := range drivers {
		left, err := d.Leftovers(ctx, owned.Machine, remove)
		if found = append(found, left...); err != nil {
			return found, err
		}
	}
	left, err := network.Leftovers(ctx, network.Config{StateDir: cfg.DataDir, Base: cfg.Network.Base, Log: log}, owned.Slot, remove)
	return append(found, left...), err
}

// abandonedLeaks looks for what one-shot stacks left that were killed. Their network slots belong to nobody, so that any pool sweeps them;
// this is about the rest.
func abandonedLeaks(ctx context.Context, cfg Config, log *slog.Logger, remove bool) ([]vmm.Leftover, error) {
	dirs, err := abandoned(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	var found []vmm.Leftover
	for _, dir := range dirs {
		drivers, err := openDrivers(cfg, dir, nil, log)
		if err != nil {
			return found, err
		}
		for _, d := range drivers {
			left, err := d.Leftovers(ctx, func(string) bool { return false }, remove)
			if found = append(found, left...); err != nil {
				return found, err
			}
		}
		found = append(found, vmm.Leftover{Kind: "folder", Name: dir})
		if remove {
			if err := os.RemoveAll(dir); err != nil {
				return found, fmt.Errorf("remove state folder: %w", err)
			}
		}
	}
	return found, nil
}

var errNotRunning = errors.New("no server runs on this data folder")

// askTime bounds a question to a running server: removing a leftover may have to wait for a process to die.
const askTime = time.Minute

// askRunning asks the server behind a control socket.
func askRunning(ctx context.Context, socket string, remove bool) ([]vmm.Leftover, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				err = errNotRunning // no socket, or one that a killed server left
			}
			return c, err
		},
	}}
	defer client.CloseIdleConnections()
	method := http.MethodGet
	if remove {
		method = http.MethodDelete
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://server/leftovers", nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var answer leftovers
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("ask the running server: %w", err)
	}
	if answer.Error != "" {
		return answer.Found, errors.New(answer.Error)
	}
	return answer.Found, nil
}

// leftovers is the answer of the control socket.
type leftovers struct {
	Found []vmm.Leftover `json:"found"`
	Error string         `json:"error,omitempty"`
}

// serveLocal answers on the control socket until ctx ends.
func (d *Daemon) serveLocal(ctx context.Context, p *parts) error {
	path := filepath.Join(p.state, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen on control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/leftovers", func(w http.ResponseWriter, r *http.Request) {
		var answer leftovers
		var err error
		if answer.Found, err = p.agent.Leftovers(r.Context(), r.Method == http.MethodDelete); err != nil {
			answer.Error = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // whoever asked and went has no use for an error
	})
	mux.Handle("/metrics", p.metrics.Handler())
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return edge.Serve(ctx, l, &http.Server{Handler: mux, ReadHeaderTimeout: askTime})
}
