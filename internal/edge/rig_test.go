package edge_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "sb.test"

// rig is a stack with an edge before it, on a plain and on a TLS listener.
type rig struct {
	*olympustest.Stack
	t     testing.TB
	edge  *edge.Edge
	plain string // http://127.0.0.1:n
	tls   string // 127.0.0.1:n
	ca    *edge.CA
	api   *client.Client
}

func newRig(t testing.TB, change func(*edge.Config)) *rig {
	t.Helper()
	r := &rig{t: t}
	// The API tells the edge, which is made after it.
	r.Stack = olympustest.New(t, func(c *olympus.Config, _ *olympustest.Node) {
		c.Changed = func(sb tartarus.Sandbox) { r.edge.Changed(sb) }
		c.Domain, c.Rate = domain, -1
	})
	cfg := edge.Config{Registry: r.DB.Registry(), Fleet: r.Fleet, Domain: domain + ":8443", Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.edge, err = edge.New(cfg); err != nil {
		t.Fatal(err)
	}
	if r.ca, err = edge.LoadOrCreateCA(t.TempDir(), domain); err != nil {
		t.Fatal(err)
	}
	r.serve()
	if r.api, err = client.New(client.Config{URL: r.plain, APIKey: r.Keys["developer"]}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.api.Close)
	return r
}

// serve starts both listeners and the edge itself until the test ends.
func (r *rig) serve() {
	h := r.edge.Wrap(r.Server.Handler())
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			r.t.Fatal(err)
		}
		return l
	}
	lp, lt := listen(), listen()
	r.plain, r.tls = "http://"+lp.Addr().String(), lt.Addr().String()
	plain := edge.NewServer(h, slog.New(slog.DiscardHandler))
	done := make(chan error, 3)
	go func() { done <- r.edge.Run(ctx) }()
	go func() { done <- r.edge.ServeTLS(ctx, lt, h, r.ca.GetCertificate) }()
	go func() {
		if err := plain.Serve(lp); err != http.ErrServerClosed {
			done <- err
			return
		}
		done <- nil
	}()
	r.t.Cleanup(func() {
		cancel()
		_ = plain.Close()
		for range 3 {
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		}
	})
}

// sandbox makes one, from a body of a create without its template.
func (r *rig) sandbox(change func(*api.NewSandbox)) *api.Sandbox {
	r.t.Helper()
	in := api.NewSandbox{TemplateID: "base"}
	if change != nil {
		change(&in)
	}
	sb, err := r.api.Create(r.t.Context(), in, client.CreateOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return sb
}

// guest makes a port of all sandboxes lead to h.
func (r *rig) guest(port int, h http.Handler) *httptest.Server {
	r.t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	s.Start()
	r.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	r.Node.Forward(port, s.Listener.Addr().String())
	return s
}

// browser is a client of the TLS listener that finds every name there and trusts the authority. h2 says what it speaks.
func (r *rig) browser(h2 bool) *http.Client {
	r.t.Helper()
	t := &http.Transport{
		TLSClientConfig: r.trust(""),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, r.tls)
		},
		Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// trust is the configuration of a client that trusts the authority and nobody else.
func (r *rig) trust(name string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(r.ca.PEM())
	return &tls.Config{RootCAs: pool, ServerName: name}
}

// prior is a client that speaks HTTP/2 to the plain listener from the first byte.
func (r *rig) prior() *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetUnencryptedHTTP2(true)
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

func hostURL(sb *api.Sandbox, port, path string) string {
	return "https://" + port + "-" + sb.SandboxID + "." + domain + ":8443" + path
}

type answer struct {
	status int
	header http.Header
	body   string
	proto  int
}

// do makes a request; further strings are header names and values in turn, "Host" among them.
func (r *rig) do(c *http.Client, method, url, body string, header ...string) answer {
	r.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, in)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(raw), res.ProtoMajor}
}

// byHeader makes a request on the API's port.
func (r *rig) byHeader(sb *api.Sandbox, port, path string, header ...string) answer {
	r.t.Helper()
	h := []string{"E2b-Sandbox-Id", sb.SandboxID}
	if port != "" {
		h = append(h, "E2b-Sandbox-Port", port)
	}
	return r.do(http.DefaultClient, "GET", r.plain+path, "", append(h, header...)...)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// say answers with what the guest saw of a request.
var say = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Guest", "yes")
	_, _ = io.WriteString(w, strings.Join([]string{r.Method, r.Host, r.URL.String(), r.Proto, string(body)}, "|"))
})
