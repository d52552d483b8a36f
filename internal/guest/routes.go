package guest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api/gen/filesystem/filesystemconnect"
	"github.com/tartarus-sandbox/tartarus/api/gen/process/processconnect"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
	"github.com/tartarus-sandbox/tartarus/internal/guest/process"
)

// route is one row of the table of everything the agent answers.
type route struct {
	pattern string
	rule    access
	handle  http.HandlerFunc
}

func (a *Agent) table() []route {
	return []route{
		{"GET /health", open, a.health},
		{"GET /metrics", token, a.metrics},
		{"GET /envs", token, a.envs},
		{"GET /files", readSign, a.files.Download},
		{"POST /files", writeSign, a.files.Upload},
		{"POST /files/compose", token, a.files.Compose},
		{"POST /init", host, a.init},
		{"POST /shutdown", host, a.shutdown},
		{"POST /terminate", host, a.terminate},
		{"GET /inspect", host, a.inspect},
		{"GET /logs", host, a.logs},
		{"GET /tunnel", host, a.tunnel},
		{"GET /volume", host, a.volume},
		calls(processconnect.NewProcessHandler(process.Service{Manager: a.processes}, a.connectOptions()...)),
		calls(filesystemconnect.NewFilesystemHandler(a.files, a.connectOptions()...)),
	}
}

// calls is the row of a Connect service.
func calls(path string, h http.Handler) route {
	return route{"POST " + path, token, process.WithConnections(h).ServeHTTP}
}

// Bounds of one message. Input is the only thing a client sends that is large: SDKs put one call's stdin into
// one message.
const (
	maxMessage = 4 << 20
	maxInput   = 64 << 20
)

func (a *Agent) connectOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithConditionalHandlerOptions(func(s connect.Spec) []connect.HandlerOption {
			switch s.Procedure {
			case processconnect.ProcessSendInputProcedure, processconnect.ProcessStreamInputProcedure:
				return []connect.HandlerOption{connect.WithReadMaxBytes(maxInput)}
			}
			return []connect.HandlerOption{connect.WithReadMaxBytes(maxMessage)}
		}),
		// A compressor costs more memory than the rest of the agent; only long listings are worth it.
		connect.WithCompressMinBytes(64 << 10),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, cause any) error {
			a.log.Error("handler panicked", "route", spec.Procedure, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
			return connect.NewError(connect.CodeInternal, errPanic)
		}),
	}
}

// routes makes the handler for all of table.
func (a *Agent) routes() http.Handler {
	mux := http.NewServeMux()
	for _, row := range a.table() {
		mux.HandleFunc(row.pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := a.allow(row.rule, r); err != nil {
				fault.HTTP(w, err)
				return
			}
			row.handle(w, r)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer a.contain(w, r)
		crossOrigin(w, r)
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		handler, pattern := mux.Handler(r)
		if pattern == "" {
			a.refuse(w, r, handler)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// refuse answers for a route that does not exist. It does so in JSON, as for everything else, and asks for the
// token first, so that a stranger learns nothing about the table.
func (a *Agent) refuse(w http.ResponseWriter, r *http.Request, mux http.Handler) {
	if err := a.allow(token, r); err != nil {
		fault.HTTP(w, err)
		return
	}
	probe := &statusProbe{header: http.Header{}}
	mux.ServeHTTP(probe, r)
	if probe.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", probe.header.Get("Allow"))
		fault.Write(w, http.StatusMethodNotAllowed, "method "+r.Method+" is not allowed here")
		return
	}
	fault.HTTP(w, tartarus.Errorf(tartarus.NotFound, "no such route: %s %s", r.Method, r.URL.Path))
}

// statusProbe keeps what the mux would have answered: 405 with Allow, 404, or a redirect to a cleaned path.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }

// crossOrigin lets pages of any origin call the agent: the token is in a header that no browser adds by itself.
func crossOrigin(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", exposed)
	if r.Method != http.MethodOptions {
		return
	}
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	allowed := "*"
	if asked := r.Header.Values("Access-Control-Request-Headers"); len(asked) > 0 {
		// "*" does not cover Authorization, so the names are repeated.
		allowed = strings.Join(asked, ", ")
	}
	h.Set("Access-Control-Allow-Headers", allowed)
	h.Set("Access-Control-Max-Age", "7200") // the most that Chromium honours
}

const exposed = "Location, Cache-Control, Content-Encoding, Content-Type, Content-Length, Content-Range, Content-Disposition, ETag, " +
	"Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, X-Content-Type-Options, X-Envd-Version"

// errPanic is what a client is told when a handler broke.
var errPanic = errors.New("the agent could not answer this request")

// contain keeps a broken handler from ending more than its own request.
func (a *Agent) contain(w http.ResponseWriter, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause) // the server cuts the connection and says nothing
	}
	a.log.Error("handler panicked", "route", r.URL.Path, "cause", fmt.Sprint(cause), "stack", string(debug.Stack()))
	fault.HTTP(w, errPanic)
}
