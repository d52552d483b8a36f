package edge

import (
	"net"
	"net/http"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/audit"
)

// doing is what a request to the guest agent does to its sandbox.
type doing struct {
	action string
	wait   bool // it must be on record before it happens
}

// doings are the agent's calls that run something or touch files. What a terminal is sent is part of the process that was started, and
// of calls that are not here nothing is kept.
var doings = map[string]doing{
	"/process.Process/Start":                  {"sandbox.exec", true},
	"/process.Process/Connect":                {"sandbox.exec.attach", false},
	"/process.Process/SendSignal":             {"sandbox.exec.signal", false},
	"/process.Process/List":                   {"sandbox.exec.list", false},
	"/filesystem.Filesystem/MakeDir":          {"sandbox.file.write", true},
	"/filesystem.Filesystem/Move":             {"sandbox.file.write", true},
	"/filesystem.Filesystem/Remove":           {"sandbox.file.write", true},
	"/filesystem.Filesystem/Stat":             {"sandbox.file.list", false},
	"/filesystem.Filesystem/ListDir":          {"sandbox.file.list", false},
	"/filesystem.Filesystem/WatchDir":         {"sandbox.file.watch", false},
	"/filesystem.Filesystem/CreateWatcher":    {"sandbox.file.watch", false},
	"/filesystem.Filesystem/GetWatcherEvents": {},
	"/filesystem.Filesystem/RemoveWatcher":    {},
}

func doingOf(r *http.Request) doing {
	if r.URL.Path == "/files" {
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			return doing{"sandbox.file.read", true}
		case http.MethodPost, http.MethodPut:
			return doing{"sandbox.file.write", true}
		}
		return doing{}
	}
	return doings[r.URL.Path]
}

// record writes what a request is about to do into the audit log. When it cannot be written, the request must not pass.
func (e *Edge) record(r *http.Request, sb tartarus.Sandbox) error {
	what := doingOf(r)
	if e.cfg.Audit == nil || what.action == "" {
		return nil
	}
	rec := audit.Record{
		Action: what.action, Stage: audit.Attempt, Verdict: audit.Allow, Tenant: sb.Tenant, Object: audit.Object{Kind: "sandbox", ID: sb.ID},
		Actor: audit.Actor{Kind: audit.ByToken, Address: address(r)}, Detail: map[string]string{"call": r.Method + " " + r.URL.Path},
	}
	if p := r.URL.Query().Get("path"); p != "" {
		rec.Detail["path"] = p
	}
	if !credible(r, sb) {
		// The agent will refuse it.
		rec.Actor.Kind = audit.ByNobody
	}
	if !what.wait {
		e.cfg.Audit.Note(rec)
		return nil
	}
	return e.cfg.Audit.Append(r.Context(), rec)
}

// credible reports whether a request carries the token of the sandbox's agent, or a signature made with it.
func credible(r *http.Request, sb tartarus.Sandbox) bool {
	return sb.Secrets.AgentToken == "" || sameToken(r.Header.Get("X-Access-Token"), sb.Secrets.AgentToken) || strings.HasPrefix(r.URL.Query().Get("signature"), "v1_")
}

func address(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}
