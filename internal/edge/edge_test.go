package edge_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/edge"
)

func TestRouting(t *testing.T) {
	r := newRig(t, nil)
	r.guest(49983, say)
	r.guest(3000, say)
	sb := r.sandbox(nil)
	host := func(port string) string { return port + "-" + sb.SandboxID + "." + domain }
	plain := strings.TrimPrefix(r.plain, "http://")
	for name, tc := range map[string]struct {
		client *http.Client
		url    string
		header []string
		want   string
	}{
		"header, agent by default": {http.DefaultClient, r.plain + "/a?b=c", []string{"E2b-Sandbox-Id", sb.SandboxID}, "POST|" + plain + "|/a?b=c|HTTP/1.1|body"},
		"header, port":             {http.DefaultClient, r.plain + "/", []string{"E2b-Sandbox-Id", sb.SandboxID, "E2b-Sandbox-Port", "3000"}, "POST|" + plain + "|/|HTTP/1.1|body"},
		"header, older id":         {http.DefaultClient, r.plain + "/", []string{"E2b-Sandbox-Id", sb.SandboxID + "-client", "E2b-Sandbox-Port", "3000"}, "POST|" + plain + "|/|HTTP/1.1|body"},
		"header, HTTP/2":           {r.prior(), r.plain + "/", []string{"E2b-Sandbox-Id", sb.SandboxID, "E2b-Sandbox-Port", "3000"}, "POST|" + plain + "|/|HTTP/1.1|body"},
		"host on the plain port":   {http.DefaultClient, r.plain + "/x", []string{"Host", host("3000")}, "POST|" + host("3000") + "|/x|HTTP/1.1|body"},
		"host over TLS":            {r.browser(false), hostURL(sb, "3000", "/x%2Fy"), nil, "POST|" + host("3000") + ":8443|/x%2Fy|HTTP/1.1|body"},
		"host over TLS, HTTP/2":    {r.browser(true), hostURL(sb, "3000", "//x"), nil, "POST|" + host("3000") + ":8443|//x|HTTP/1.1|body"},
		"host wins over headers":   {r.browser(true), hostURL(sb, "3000", "/"), []string{"E2b-Sandbox-Id", "iother", "E2b-Sandbox-Port", "1"}, "POST|" + host("3000") + ":8443|/|HTTP/1.1|body"},
		"header on a stable host":  {r.browser(true), "https://sandbox." + domain + "/", []string{"E2b-Sandbox-Id", sb.SandboxID, "E2b-Sandbox-Port", "3000"}, "POST|sandbox." + domain + "|/|HTTP/1.1|body"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.do(tc.client, "POST", tc.url, "body", tc.header...); got.status != 200 || got.body != tc.want || got.header.Get("X-Guest") != "yes" {
				t.Errorf("got %d %q, want %q", got.status, got.body, tc.want)
			}
		})
	}
}

// What is not for a sandbox goes to the API, on both listeners.
func TestAPIBehindTheEdge(t *testing.T) {
	r := newRig(t, nil)
	for _, u := range []string{r.plain + "/health", "https://api." + domain + "/health"} {
		if got := r.do(r.either(u), "GET", u, ""); got.status != 200 || !strings.Contains(got.body, `"ok"`) {
			t.Errorf("%s: got %d %s", u, got.status, got.body)
		}
	}
	if got := r.do(http.DefaultClient, "GET", r.plain+"/files", ""); got.status != 404 || !strings.Contains(got.body, "there is no route") {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

func (r *rig) either(u string) *http.Client {
	if strings.HasPrefix(u, "https") {
		return r.browser(true)
	}
	return http.DefaultClient
}

// SDKs compare these bodies.
func TestRefusals(t *testing.T) {
	r := newRig(t, nil)
	r.guest(49983, say)
	sb := r.sandbox(nil)
	dead := r.sandbox(nil)
	if err := r.api.Kill(t.Context(), dead.SandboxID); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		id, port string
		status   int
		want     string
	}{
		"unknown":     {"iunknown", "3000", 502, `{"sandboxId":"iunknown","message":"The sandbox was not found","code":502}`},
		"dead":        {dead.SandboxID, "", 502, `{"sandboxId":"` + dead.SandboxID + `","message":"The sandbox was not found","code":502}`},
		"not an id":   {"../etc", "", 502, `{"sandboxId":"../etc","message":"The sandbox was not found","code":502}`},
		"closed port": {sb.SandboxID, "3000", 502, `{"sandboxId":"` + sb.SandboxID + `","message":"The sandbox is running but port is not open","port":3000,"code":502}`},
		"no port":     {sb.SandboxID, "x", 400, `{"sandboxId":"` + sb.SandboxID + `","message":"E2b-Sandbox-Port \"x\" is not a port","code":400}`},
		"port 0":      {sb.SandboxID, "0", 400, `{"sandboxId":"` + sb.SandboxID + `","message":"E2b-Sandbox-Port \"0\" is not a port","code":400}`},
		"huge port":   {sb.SandboxID, "65536", 400, `{"sandboxId":"` + sb.SandboxID + `","message":"E2b-Sandbox-Port \"65536\" is not a port","code":400}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.byHeader(&api.Sandbox{SandboxID: tc.id}, tc.port, "/health")
			if got.status != tc.status || got.body != tc.want || got.header.Get("Content-Type") != "application/json" {
				t.Errorf("got %d %s, want %s", got.status, got.body, tc.want)
			}
			page := r.byHeader(&api.Sandbox{SandboxID: tc.id}, tc.port, "/", "Accept", "text/html,*/*")
			if page.status != tc.status || !strings.HasPrefix(page.body, "<!doctype html>") || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
				t.Errorf("a browser got %d %s", page.status, page.body)
			}
		})
	}
	if page := r.byHeader(&api.Sandbox{SandboxID: "<b>x"}, "", "/", "Accept", "text/html"); strings.Contains(page.body, "<b>") {
		t.Errorf("the page is open to injection: %s", page.body)
	}
	// A node that cannot be reached is neither of the two: SDKs take the state as unknown.
	delete(r.Fleet, "one")
	if got := r.byHeader(sb, "", "/health"); got.status != 502 || strings.Contains(got.body, "not found") || strings.Contains(got.body, "not open") {
		t.Errorf("node away: got %d %s", got.status, got.body)
	}
	r.Fleet["one"] = r.Node
}

func TestInternalRoutesAreHidden(t *testing.T) {
	r := newRig(t, nil)
	var reached atomic.Int32
	r.guest(49983, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/initial" && req.URL.Path != "/files/init" {
			reached.Add(1)
		}
	}))
	r.guest(3000, say)
	sb := r.sandbox(nil)
	for _, path := range []string{"/init", "/init/", "//init", "/./init", "/x/../init", "/%69nit", "/INIT", "/init/x", "/init?a", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade",
		"/shutdown", "/inspect?since=0&within=1", "/logs?since=0", "/tunnel?port=22", "//tunnel", "/volume?path=/v"} {
		if got := r.byHeader(sb, "", path); got.status != 404 {
			t.Errorf("%s: got %d", path, got.status)
		}
	}
	if n := reached.Load(); n != 0 {
		t.Errorf("%d requests reached the agent", n)
	}
	for _, path := range []string{"/initial", "/files/init"} {
		if got := r.byHeader(sb, "", path); got.status != 200 {
			t.Errorf("%s: got %d", path, got.status)
		}
	}
	if got := r.byHeader(sb, "3000", "/init"); got.status != 200 {
		t.Errorf("a guest's own /init: got %d", got.status)
	}
}

func TestTrafficToken(t *testing.T) {
	r := newRig(t, nil)
	r.guest(49983, say)
	seen := make(chan http.Header, 10)
	r.guest(3000, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { seen <- req.Header }))
	off := false
	sb := r.sandbox(func(in *api.NewSandbox) { in.Network = &api.NetworkConfig{AllowPublicTraffic: &off} })
	if sb.TrafficAccessToken == "" {
		t.Fatal("no token")
	}
	for _, token := range []string{"", "wrong", sb.TrafficAccessToken + "x", sb.TrafficAccessToken[1:], sb.EnvdAccessToken} {
		if got := r.byHeader(sb, "3000", "/", "e2b-traffic-access-token", token); got.status != 403 || !strings.Contains(got.body, `"code":403`) {
			t.Errorf("%q: got %d %s", token, got.status, got.body)
		}
	}
	if got := r.byHeader(sb, "3000", "/", "e2b-traffic-access-token", sb.TrafficAccessToken, "X-API-Key", r.Keys["developer"], "X-Mine", "1"); got.status != 200 {
		t.Errorf("got %d", got.status)
	}
	h := <-seen
	if h.Get("E2b-Traffic-Access-Token") != "" || h.Get("X-Api-Key") != "" || h.Get("X-Mine") != "1" {
		t.Errorf("the guest saw %v", h)
	}
	if got := r.byHeader(sb, "", "/health"); got.status != 200 {
		t.Errorf("the agent has its own token: got %d", got.status)
	}
	// A guest's own X-API-Key is the guest's.
	open := r.sandbox(nil)
	r.byHeader(open, "3000", "/", "X-API-Key", "sk-mine")
	if h := <-seen; h.Get("X-Api-Key") != "sk-mine" {
		t.Errorf("the guest saw %v", h)
	}
}

func TestHopByHop(t *testing.T) {
	r := newRig(t, nil)
	seen := make(chan http.Header, 1)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen <- req.Header
		w.Header().Set("Connection", "X-Private")
		w.Header().Set("X-Private", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
	}))
	sb := r.sandbox(nil)
	got := r.byHeader(sb, "3000", "/", "Connection", "X-Secret", "X-Secret", "1", "Proxy-Authorization", "x", "X-Forwarded-For", "6.6.6.6", "Forwarded", "for=6.6.6.6")
	h := <-seen
	if h.Get("X-Secret") != "" || h.Get("Proxy-Authorization") != "" {
		t.Errorf("the guest saw %v", h)
	}
	if h.Get("X-Forwarded-For") != "127.0.0.1" || h.Get("Forwarded") != "" || h.Get("X-Forwarded-Proto") != "http" {
		t.Errorf("the guest was told %v", h)
	}
	if got.header.Get("X-Private") != "" || got.header.Get("Keep-Alive") != "" || len(got.header["Set-Cookie"]) != 2 {
		t.Errorf("the client saw %v", got.header)
	}
}

func TestMaskRequestHost(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, say)
	r.guest(49983, say)
	sb := r.sandbox(func(in *api.NewSandbox) { in.Network = &api.NetworkConfig{MaskRequestHost: "localhost:${PORT}"} })
	if got := r.byHeader(sb, "3000", "/"); !strings.HasPrefix(got.body, "GET|localhost:3000|") {
		t.Errorf("got %s", got.body)
	}
	if got := r.do(r.browser(true), "GET", hostURL(sb, "3000", "/"), ""); !strings.HasPrefix(got.body, "GET|localhost:3000|") {
		t.Errorf("got %s", got.body)
	}
	if got := r.byHeader(sb, "", "/"); strings.Contains(got.body, "localhost:") {
		t.Errorf("the agent's host is masked: %s", got.body)
	}
}

func TestGuestThatSpeaksTLS(t *testing.T) {
	r := newRig(t, nil)
	guest := httptest.NewUnstartedServer(say)
	guest.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	guest.StartTLS()
	t.Cleanup(guest.Close)
	r.Node.Forward(8443, guest.Listener.Addr().String())
	r.Node.Forward(9443, guest.Listener.Addr().String())
	sb := r.sandbox(func(in *api.NewSandbox) { in.Network = &api.NetworkConfig{HTTPSPorts: []int{8443}} })
	if got := r.byHeader(sb, "8443", "/x"); got.status != 200 || !strings.Contains(got.body, "|/x|") {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if got := r.byHeader(sb, "9443", "/x"); got.status == 200 {
		t.Errorf("a port that was not named is spoken to in TLS: %s", got.body)
	}
}

func TestSignedURLs(t *testing.T) {
	r := newRig(t, nil)
	r.guest(49983, say)
	a, b := r.sandbox(nil), r.sandbox(nil)
	sign := func(sb *api.Sandbox, path, operation, user, exp string) string {
		text := path + ":" + operation + ":" + user + ":" + sb.EnvdAccessToken
		q := url.Values{"path": {path}}
		if user != "" {
			q.Set("username", user)
		}
		if exp != "" {
			text += ":" + exp
			q.Set("signature_expiration", exp)
		}
		sum := sha256.Sum256([]byte(text))
		q.Set("signature", "v1_"+strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "="))
		return r.plain + "/files?" + q.Encode()
	}
	for _, tc := range []struct {
		sb                   *api.Sandbox
		method, op, user, ex string
	}{{a, "GET", "read", "", ""}, {b, "GET", "read", "root", "1999999999"}, {a, "POST", "write", "user", ""}} {
		u := sign(tc.sb, "/tmp/ä b", tc.op, tc.user, tc.ex)
		for range 2 {
			if got := r.do(http.DefaultClient, tc.method, u, ""); got.status != 200 || !strings.Contains(got.body, "|/files?") {
				t.Errorf("%+v: got %d %s", tc, got.status, got.body)
			}
		}
		if got := r.do(http.DefaultClient, tc.method, strings.Replace(u, "=v1_", "=v1_0", 1), ""); got.status != 502 {
			t.Errorf("a signature that nobody made: got %d", got.status)
		}
	}
	// A browser asks first, by another method.
	ask := r.do(http.DefaultClient, "OPTIONS", sign(b, "/up", "write", "", ""), "", "Access-Control-Request-Method", "POST", "Origin", "http://x")
	if ask.status != 200 || !strings.HasPrefix(ask.body, "OPTIONS|") {
		t.Errorf("preflight: got %d %s", ask.status, ask.body)
	}
	// One made after the tokens were read is found all the same.
	late := r.sandbox(nil)
	eventually(t, "a new sandbox's signature leads to it", func() bool {
		return r.do(http.DefaultClient, "GET", sign(late, "/x", "read", "", ""), "").status == 200
	})
	// Guessing is bounded.
	limited := false
	for i := range 300 {
		limited = limited || r.do(http.DefaultClient, "GET", r.plain+"/files?path=a&signature=v1_"+strconv.Itoa(i), "").status == 429
	}
	if !limited {
		t.Error("signatures may be guessed without end")
	}
}

// The Go client reaches a guest through the API's port, and gives the agent's token to the agent alone.
func TestGoClient(t *testing.T) {
	r := newRig(t, nil)
	seen := make(chan http.Header, 2)
	h := http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { seen <- req.Header })
	r.guest(49983, h)
	r.guest(3000, h)
	sb := r.sandbox(nil)
	g := r.api.Guest(sb)
	for port, want := range map[int]string{49983: sb.EnvdAccessToken, 3000: ""} {
		res, err := g.HTTPClient(port).Get(g.BaseURL() + "/x")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := (<-seen).Get("X-Access-Token"); got != want {
			t.Errorf("port %d saw the token %q", port, got)
		}
	}
}

func TestWake(t *testing.T) {
	var woken atomic.Int32
	r := newRig(t, func(c *edge.Config) {
		c.Wake = func(_ context.Context, sb tartarus.Sandbox) (tartarus.Sandbox, error) {
			woken.Add(1)
			if sb.Metadata["lazy"] != "" {
				return sb, errors.New("will not")
			}
			sb.Phase = tartarus.Running
			return sb, nil
		}
	})
	r.guest(3000, say)
	sleep := func(autoResume bool, meta map[string]string) *api.Sandbox {
		sb := r.sandbox(func(in *api.NewSandbox) {
			in.AutoResume, in.Metadata = &api.AutoResume{Enabled: autoResume}, meta
		})
		stored, err := r.DB.Registry().Sandbox(t.Context(), "default", sb.SandboxID)
		if err != nil {
			t.Fatal(err)
		}
		stored.Phase = tartarus.Paused
		if _, err := r.DB.Registry().PutSandbox(t.Context(), stored); err != nil {
			t.Fatal(err)
		}
		r.edge.Changed(stored)
		return sb
	}
	if got := r.byHeader(sleep(true, nil), "3000", "/"); got.status != 200 || woken.Load() != 1 {
		t.Errorf("got %d, woken %d times", got.status, woken.Load())
	}
	if got := r.byHeader(sleep(false, nil), "3000", "/"); got.status != 502 || woken.Load() != 1 {
		t.Errorf("got %d, woken %d times", got.status, woken.Load())
	}
	if got := r.byHeader(sleep(true, map[string]string{"lazy": "1"}), "3000", "/"); got.status != 502 || strings.Contains(got.body, "will not") {
		t.Errorf("got %d %s", got.status, got.body)
	}
}

// Connections to a guest are kept and used again, and many requests at once work.
func TestPooling(t *testing.T) {
	r := newRig(t, nil)
	var mu sync.Mutex
	from := map[string]bool{}
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		from[req.RemoteAddr] = true
		mu.Unlock()
		raw, _ := io.ReadAll(req.Body) // Go's own server ends a body when an answer begins
		_, _ = w.Write(raw)
	}))
	sb := r.sandbox(nil)
	for range 20 {
		r.byHeader(sb, "3000", "/")
	}
	if n := len(from); n != 1 {
		t.Errorf("%d connections for requests one after another", n)
	}
	g := r.api.Guest(sb).HTTPClient(3000)
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			want := strings.Repeat(strconv.Itoa(i), 1000)
			res, err := g.Post(r.plain, "text/plain", strings.NewReader(want))
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if raw, err := io.ReadAll(res.Body); err != nil || string(raw) != want {
				t.Errorf("request %d: got %d bytes, %v", i, len(raw), err)
			}
		})
	}
	group.Wait()
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := edge.New(edge.Config{}); err == nil {
		t.Error("an edge without anything was made")
	}
	for _, d := range []string{"a_b", "a..b", "-a.b", "a:0", "a:x", "*.a", strings.Repeat("a", 64), strings.Repeat("a.", 120) + "a"} {
		if _, err := edge.LoadOrCreateCA(t.TempDir(), d); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("domain %q: %v", d, err)
		}
	}
}
