package guest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest"
	"github.com/tartarus-sandbox/tartarus/internal/guest/guestclient"
)

// loopback is where the tests serve.
var loopback = netip.MustParseAddr("127.0.0.1")

const testToken = "ea_token"

// Every route, with what a stranger gets when a token is set.
func TestAccessTable(t *testing.T) {
	a := start(t)
	if err := a.client.Init(t.Context(), guestclient.Init{AccessToken: testToken}); err != nil {
		t.Fatal(err)
	}
	a.setHost(false)
	for route, want := range map[string]struct{ stranger, wrong, right int }{
		"GET /health":                      {204, 204, 204},
		"GET /metrics":                     {401, 401, 200},
		"GET /envs":                        {401, 401, 200},
		"GET /files":                       {401, 401, 400}, // the default path is a folder
		"POST /files":                      {401, 401, 400},
		"POST /files/compose":              {401, 401, 400},
		"POST /init":                       {404, 404, 404},
		"POST /shutdown":                   {404, 404, 404},
		"POST /terminate":                  {404, 404, 404},
		"GET /logs":                        {404, 404, 404},
		"GET /tunnel":                      {404, 404, 404},
		"GET /volume":                      {404, 404, 404},
		"GET /nothing":                     {401, 401, 404},
		"DELETE /files":                    {401, 401, 405},
		"GET /init":                        {401, 401, 405},
		"POST /process.Process/List":       {401, 401, 415},
		"POST /filesystem.Filesystem/Stat": {401, 401, 415},
		"POST /process.Process/Nothing":    {401, 401, 404},
		"GET /process.Process/List":        {401, 401, 405},
	} {
		method, path, _ := strings.Cut(route, " ")
		for token, status := range map[string]int{"": want.stranger, "wrong": want.wrong, testToken: want.right} {
			var header []string
			if token != "" {
				header = []string{"X-Access-Token", token}
			}
			got, h, body := a.do(t, method, path, nil, header...)
			if got != status {
				t.Errorf("%s with token %q: %d %s, want %d", route, token, got, body, status)
			}
			if got == 401 && (!strings.HasPrefix(body, `{"code":401,"message":"`) || h.Get("Content-Type") != "application/json") {
				t.Errorf("%s: %s", route, body)
			}
			if h.Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s: no CORS header", route)
			}
		}
	}
}

func TestTokenCanBeTakenAway(t *testing.T) {
	a := start(t)
	for _, c := range []struct {
		body string
		want int
	}{
		{`{"accessToken":"x"}`, 401}, {`{}`, 401}, {`{"accessToken":null}`, 401}, {`{"accessToken":""}`, 200}, {`{"accessToken":"y"}`, 401},
	} {
		if status, _, body := a.do(t, "POST", "/init", strings.NewReader(c.body)); status != 204 {
			t.Fatalf("%s: %d %s", c.body, status, body)
		}
		if status, _, _ := a.do(t, "GET", "/envs", nil); status != c.want {
			t.Errorf("after %s: %d", c.body, status)
		}
	}
}

func TestPreflight(t *testing.T) {
	a := start(t)
	if err := a.client.Init(t.Context(), guestclient.Init{AccessToken: testToken}); err != nil {
		t.Fatal(err)
	}
	status, h, _ := a.do(t, "OPTIONS", "/process.Process/Start", nil, "Origin", "https://example.org", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization, x-access-token")
	if status != 204 || h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Headers") != "authorization, x-access-token" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("%d %v", status, h)
	}
}

// sign does what SDKs do, written a second time.
func sign(path, operation, user string, exp int64) string {
	raw := fmt.Sprintf("%s:%s:%s:%s", path, operation, user, testToken)
	if exp != 0 {
		raw += fmt.Sprintf(":%d", exp)
	}
	sum := sha256.Sum256([]byte(raw))
	return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
}

func TestSignatures(t *testing.T) {
	a := start(t)
	file := a.write(t, "file", "content")
	if err := a.client.Init(t.Context(), guestclient.Init{AccessToken: testToken, DefaultUser: "root"}); err != nil {
		t.Fatal(err)
	}
	later, before := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	exp := func(n int64) string { return fmt.Sprint(n) }
	for name, c := range map[string]struct {
		query   string
		status  int
		message string
	}{
		"good":            {q("path", file, "signature", sign(file, "read", "", 0)), 200, ""},
		"with user":       {q("path", file, "username", "root", "signature", sign(file, "read", "root", 0)), 200, ""},
		"expires later":   {q("path", file, "signature", sign(file, "read", "", later), "signature_expiration", exp(later)), 200, ""},
		"expired":         {q("path", file, "signature", sign(file, "read", "", before), "signature_expiration", exp(before)), 401, "signature is already expired"},
		"missing":         {q("path", file), 401, "missing signature query parameter"},
		"empty":           {q("path", file, "signature", ""), 401, "invalid signature"},
		"of a write":      {q("path", file, "signature", sign(file, "write", "", 0)), 401, "invalid signature"},
		"of another path": {q("path", file, "signature", sign(file+"x", "read", "", 0)), 401, "invalid signature"},
		"of another user": {q("path", file, "username", "other", "signature", sign(file, "read", "", 0)), 401, "invalid signature"},
		"longer life":     {q("path", file, "signature", sign(file, "read", "", before), "signature_expiration", exp(later)), 401, "invalid signature"},
		"endless life":    {q("path", file, "signature", sign(file, "read", "", later)), 401, "invalid signature"},
		"odd expiration":  {q("path", file, "signature", sign(file, "read", "", later), "signature_expiration", "+"+exp(later)), 401, "invalid signature"},
		"no expiration":   {q("path", file, "signature", sign(file, "read", "", 0), "signature_expiration", ""), 401, "invalid signature"},
		"not a number":    {q("path", file, "signature", sign(file, "read", "", 0), "signature_expiration", "x"), 401, "invalid signature"},
	} {
		status, _, body := a.do(t, "GET", c.query, nil)
		if status != c.status || !strings.Contains(body, c.message) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, _, body := a.do(t, "GET", q("path", file, "signature", sign(file, "read", "", 0)), nil, "X-Access-Token", "wrong"); status != 401 {
		t.Errorf("a wrong token beside a good signature: %d %s", status, body)
	}
	if status, _, body := a.do(t, "POST", q("path", file, "signature", sign(file, "write", "", 0)), strings.NewReader("new"), "Content-Type", "application/octet-stream"); status != 200 || read(t, file) != "new" {
		t.Errorf("write: %d %s", status, body)
	}
	// A signature opens files and nothing else.
	if status, _, _ := a.do(t, "GET", "/envs?signature="+sign("", "read", "", 0), nil); status != 401 {
		t.Errorf("envs: %d", status)
	}
}

func TestFromHost(t *testing.T) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range own {
		ip := address.(*net.IPNet).IP
		if guest.FromHost(&net.TCPAddr{IP: ip, Port: 1}) {
			t.Errorf("%s is this guest's own", ip)
		}
	}
	for text, want := range map[string]bool{
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "::ffff:127.0.0.1": false, "0.0.0.0": false, "192.0.2.1": true, "::ffff:192.0.2.1": true,
	} {
		if got := guest.FromHost(&net.TCPAddr{IP: net.ParseIP(text), Port: 1}); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	if guest.FromHost(&net.UnixAddr{Name: "x"}) || guest.FromHost(nil) {
		t.Error("what is not TCP is not the host")
	}
}

// Without the injected rule, a program on the guest's loopback is not the host.
func TestHostRoutesFromLoopback(t *testing.T) {
	a := start(t, func(c *guest.Config) { c.FromHost = guest.FromHost })
	if err := a.client.Init(t.Context(), guestclient.Init{}); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("init from loopback: %v", err)
	}
	if _, err := a.client.Shutdown(t.Context(), 0); !tartarus.Is(err, tartarus.NotFound) {
		t.Errorf("shutdown from loopback: %v", err)
	}
}

func TestH2C(t *testing.T) {
	a := start(t)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	client := guestclient.New(guestclient.Config{BaseURL: a.url, RoundTripper: transport})
	res, err := (&http.Client{Transport: transport}).Get(a.url + "/health")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.ProtoMajor != 2 || res.StatusCode != 204 {
		t.Errorf("%s %d", res.Proto, res.StatusCode)
	}
	var out strings.Builder
	exit, err := client.Run(t.Context(), guestclient.Command{Argv: []string{"cat"}, User: "root"}, strings.NewReader("over one connection"), &out, &out)
	if err != nil || exit.Code != 0 || out.String() != "over one connection" {
		t.Errorf("%q %+v %v", out.String(), exit, err)
	}
}
