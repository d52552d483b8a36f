package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/client"
	"github.com/tartarus-sandbox/tartarus/test/outside"
)

// buildFetch builds the program fetch.
func buildFetch(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fetch")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, "./testdata/fetch")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build fetch: %v\n%s", err, text)
	}
	return out
}

// giveFetch puts the program fetch into a sandbox.
func (s *server) giveFetch(fetch, id string) {
	s.t.Helper()
	if out, code := s.cli("cp", fetch, id+":/tmp/fetch"); code != 0 {
		s.t.Fatalf("cp: %s", out)
	}
	s.sh(id, "chmod 755 /tmp/fetch")
}

// echoed is what the web server outside says of a request.
type echoed struct {
	Host    string
	Headers http.Header
}

// fetch asks for a URL from inside a sandbox; the error is what the sandbox saw.
func (s *server) fetch(id, url string) (got echoed, err error) {
	s.t.Helper()
	out, code := s.cli("exec", id, "--", "/tmp/fetch", url)
	if code != 0 {
		return got, fmt.Errorf("exit code %d: %s", code, strings.TrimSpace(out))
	}
	return got, json.Unmarshal([]byte(out), &got)
}

// signer says who signed the certificate that a sandbox sees at a URL.
func (s *server) signer(id, url string) string {
	s.t.Helper()
	out, _ := s.cli("exec", id, "--", "/tmp/fetch", "-k", url)
	return strings.TrimSpace(out)
}

// withRule has a header put into requests to api.outside.example, and names asked of the server outside.
func withRule(header, value string) api.NetworkConfig {
	return api.NetworkConfig{DNSServers: []string{outside.NameServer}, Rules: map[string][]api.NetworkRule{
		"api.outside.example": {{Transform: &api.Transform{Headers: map[string]string{header: value}}}},
	}}
}

const (
	site      = "https://api.outside.example/x"
	otherSite = "https://other.outside.example/x"
)

// TestHeadersWithSecrets has a secret and an identity token put into requests to one server: the server gets them, the sandbox never sees them, nothing
// on the host keeps them in the clear; and it stays so over pause, restart of the server, and in a machine that was claimed.
func TestHeadersWithSecrets(t *testing.T) {
	o := newInternet(t)
	fetch := buildFetch(t)
	s := newServer(t, "SSL_CERT_FILE="+o.trust, "TARTARUS_LOG_LEVEL=debug")
	const value = "correct-horse-battery-staple"
	if _, err := s.CreateSecret(t.Context(), api.NewSecret{Name: "apikey", Value: value}); err != nil {
		t.Fatal(err)
	}
	config := withRule("Authorization", "Bearer ${e2b.secrets.apikey}")
	config.Rules["api.outside.example"][0].Transform.Headers["X-Identity"] = "${e2b.identity.tokens.svc}"
	id := s.claimed(func(in *api.NewSandbox) {
		in.Network, in.IAM = &config, &api.IAM{Tokens: map[string]api.IAMToken{"svc": {Audience: "https://sts.example", TokenType: "JWT-SVID"}}}
	})
	s.giveFetch(fetch, id)
	works := func(when string) {
		t.Helper()
		got, err := s.fetch(id, site)
		if err != nil {
			t.Fatalf("%s: %v\n%s", when, err, s.log)
		}
		if h := got.Headers.Get("Authorization"); h != "Bearer "+value || got.Host != "api.outside.example" {
			t.Errorf("%s: the server got %q for %s", when, h, got.Host)
		}
		s.checkToken(got.Headers.Get("X-Identity"), id, "https://sts.example")
	}
	works("claimed")
	if got := s.signer(id, otherSite); got != "signed by Outside" {
		t.Errorf("another server's certificate: %q", got)
	}
	if got := s.sh(id, "env; cat /proc/*/environ /run/e2b/* 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(got, value) {
		t.Error("the sandbox sees the secret")
	}
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(t.Context(), id, 5*time.Minute); err != nil {
		t.Fatal(err)
	}
	works("after a pause")
	s.kill()
	s.start()
	works("after a killed server")
	if _, err := s.UpdateSecret(t.Context(), "apikey", api.SecretUpdate{Value: "second"}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.fetch(id, site); err != nil || got.Headers.Get("Authorization") != "Bearer second" {
		t.Errorf("after the secret changed: %+v, %v", got, err)
	}
	if err := s.RemoveSecret(t.Context(), "apikey"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.fetch(id, site); err == nil || !strings.Contains(err.Error(), "502") || !strings.Contains(err.Error(), "apikey") {
		t.Errorf("without the secret: %v", err)
	}
	s.holdsNowhere(value)
}

// holdsNowhere looks for a text in the server's log and in all files of its data folder.
func (s *server) holdsNowhere(text string) {
	s.t.Helper()
	if strings.Contains(s.log.String(), text) {
		s.t.Errorf("the log says %q:\n%s", text, s.log)
	}
	err := filepath.WalkDir(s.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // files come and go
		}
		if info, err := d.Info(); err != nil || info.Size() > 64<<20 {
			return nil //nolint:nilerr // likewise; and images and memories are the guests' own
		}
		raw, err := os.ReadFile(path)
		if err == nil && bytes.Contains(raw, []byte(text)) {
			s.t.Errorf("%s holds %q", path, text)
		}
		return nil
	})
	if err != nil {
		s.t.Error(err)
	}
}

// checkToken checks an identity token as a service would, with what the server publishes.
func (s *server) checkToken(token, id, audience string) {
	s.t.Helper()
	res, err := http.Get("http://" + s.addr + "/.well-known/jwks.json")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var set struct{ Keys []struct{ X, Y string } }
	if err := json.NewDecoder(res.Body).Decode(&set); err != nil || len(set.Keys) != 1 {
		s.t.Fatalf("key set %+v: %v", set, err)
	}
	plain := func(text string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			s.t.Errorf("token %q: %v", token, err)
		}
		return b
	}
	part := strings.Split(token, ".")
	if len(part) != 3 {
		s.t.Fatalf("no token: %q", token)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, plain(set.Keys[0].X), plain(set.Keys[0].Y)))
	if err != nil {
		s.t.Fatal(err)
	}
	sum, sig := sha256.Sum256([]byte(part[0]+"."+part[1])), plain(part[2])
	if len(sig) != 64 || !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		s.t.Errorf("the signature of %q does not hold", token)
	}
	var claims struct {
		Sub, Tenant string
		Aud         []string
		Exp         int64
	}
	if err := json.Unmarshal(plain(part[1]), &claims); err != nil {
		s.t.Fatal(err)
	}
	if !strings.HasSuffix(claims.Sub, "/sandbox/"+id) || !slices.Equal(claims.Aud, []string{audience}) || time.Until(time.Unix(claims.Exp, 0)) > 10*time.Minute {
		s.t.Errorf("the token says %+v", claims)
	}
}

// TestNetworkIsReplaced changes the options of a sandbox that runs: what is not named in an update is gone.
func TestNetworkIsReplaced(t *testing.T) {
	o := newInternet(t)
	fetch := buildFetch(t)
	s := newServer(t, "SSL_CERT_FILE="+o.trust)
	id := s.create().SandboxID
	s.giveFetch(fetch, id)
	if _, err := s.fetch(id, site); err == nil || !strings.Contains(err.Error(), "lookup") {
		t.Errorf("a name that nobody knows: %v", err)
	}
	for _, want := range []string{"one", "two"} {
		if err := s.SetNetwork(t.Context(), id, withRule("X-Key", want)); err != nil {
			t.Fatal(err)
		}
		if got, err := s.fetch(id, site); err != nil || got.Headers.Get("X-Key") != want {
			t.Errorf("%s: %+v, %v\n%s", want, got, err, s.log)
		}
	}
	if got := s.signer(id, site); got != "signed by Tartarus egress" {
		t.Errorf("with a rule: %q", got)
	}
	if err := s.SetNetwork(t.Context(), id, api.NetworkConfig{DNSServers: []string{outside.NameServer}}); err != nil {
		t.Fatal(err)
	}
	if got := s.signer(id, site); got != "signed by Outside" {
		t.Errorf("without a rule: %q", got)
	}
	if err := s.SetNetwork(t.Context(), id, api.NetworkConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.fetch(id, "https://new.outside.example/"); err == nil || !strings.Contains(err.Error(), "lookup") {
		t.Errorf("without name servers: %v", err)
	}
	for name, bad := range map[string]api.NetworkConfig{
		"header": withRule("Host", "x"), "value": withRule("X", "a\nb"), "placeholder": withRule("X", "${e2b.nothing}"),
		"name server": {DNSServers: []string{"10.0.0.1"}}, "proxy": {EgressProxy: &api.EgressProxy{Address: "127.0.0.1:1"}},
	} {
		if err := s.SetNetwork(t.Context(), id, bad); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		_, err := s.Create(t.Context(), api.NewSandbox{TemplateID: "tiny", Network: &bad}, client.CreateOptions{})
		if !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("create, %s: %v", name, err)
		}
	}
	if n := len(s.machines()); n > 20 {
		t.Errorf("refused creates left %d machines", n)
	}
}

// TestEgressProxy sends what leaves a sandbox through a proxy, and nothing past it.
func TestEgressProxy(t *testing.T) {
	o := newInternet(t)
	fetch := buildFetch(t)
	s := newServer(t, "SSL_CERT_FILE="+o.trust, "TARTARUS_LOG_LEVEL=debug")
	proxy := &api.EgressProxy{Address: outside.SocksServer + ":1080", Username: outside.User, Password: outside.Password}
	config := withRule("X-Key", "v")
	config.EgressProxy = proxy
	id := s.create(func(in *api.NewSandbox) { in.Network = &config }).SandboxID
	s.giveFetch(fetch, id)
	works := func(when string) {
		t.Helper()
		for url, want := range map[string]string{site: "v", "http://other.outside.example/": ""} {
			got, err := s.fetch(id, url)
			if err != nil || got.Headers.Get("X-Key") != want {
				t.Errorf("%s: %s: %+v, %v\n%s", when, url, got, err, s.log)
			}
		}
		if got := o.Dialled(); !slices.Contains(got, outside.WebServer+":443") || !slices.Contains(got, outside.WebServer+":80") {
			t.Errorf("%s: the proxy was asked for %v", when, got)
		}
	}
	works("from the beginning")
	if err := s.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(t.Context(), id, 5*time.Minute); err != nil {
		t.Fatal(err)
	}
	works("after a pause")
	proxy.Password = "wrong-word"
	if err := s.SetNetwork(t.Context(), id, config); err != nil {
		t.Fatal(err)
	}
	if got, err := s.fetch(id, site); err == nil {
		t.Errorf("past the proxy: %+v", got)
	}
	if got := o.Dialled(); len(got) != 0 {
		t.Errorf("the proxy let in %v", got)
	}
	config.EgressProxy = nil
	if err := s.SetNetwork(t.Context(), id, config); err != nil {
		t.Fatal(err)
	}
	if got, err := s.fetch(id, site); err != nil || got.Headers.Get("X-Key") != "v" || len(o.Dialled()) != 0 {
		t.Errorf("without a proxy: %+v, %v", got, err)
	}
	if info, err := s.Get(t.Context(), id); err != nil || info.Network.EgressProxy != nil {
		t.Errorf("it is described as %+v, %v", info, err)
	}
	if strings.Contains(s.log.String(), "wrong-word") {
		t.Error("the log has the password")
	}
}
