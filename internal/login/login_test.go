package login

import (
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/login/logintest"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rules give ops and dev a role in the tenant default.
func rules(i *logintest.Issuer) Config {
	return Config{
		Issuer: i.URL, ClientID: logintest.Client, RoleClaim: "groups", Tenant: tenant.Default,
		Roles: map[string]tenant.Role{"ops": tenant.Operator, "dev": tenant.Developer, "watch": tenant.Reader},
	}
}

func open(t *testing.T, cfg Config) *Issuer {
	t.Helper()
	i, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func TestTokensOfPeople(t *testing.T) {
	idp := logintest.New(t)
	people := open(t, rules(idp))
	for _, algorithm := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256} {
		idp.Rotate(algorithm) // known to nobody before a token comes that is signed by it
		k, err := people.Verify(t.Context(), idp.Token(map[string]any{"groups": []string{"dev", "staff", "ops"}}))
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		if k.ID != "oidc:ann" || k.Name != "ann@example.com" || k.Role != tenant.Operator || !k.Exec || k.Tenant != tenant.Default || !k.Person {
			t.Errorf("%s: got %+v", algorithm, k)
		}
		if now := time.Now(); !k.Valid(now) || k.Valid(now.Add(time.Hour)) {
			t.Errorf("good until %s", k.ExpiresAt)
		}
	}
	if k, err := people.Verify(t.Context(), idp.Token(map[string]any{"groups": "watch"})); err != nil || k.Role != tenant.Reader || k.Exec {
		t.Errorf("a reader is %+v, %v", k, err)
	}
}

func TestTokensThatAreRefused(t *testing.T) {
	idp, other := logintest.New(t), logintest.New(t)
	people := open(t, rules(idp))
	dev := map[string]any{"groups": "dev"}
	with := func(name string, value any) map[string]any { return map[string]any{"groups": "dev", name: value} }
	if _, err := people.Verify(t.Context(), idp.Token(dev)); err != nil {
		t.Fatal(err)
	}
	good := idp.Token(dev)
	parts := strings.Split(good, ".")
	for name, tt := range map[string]struct{ token, code, why string }{
		"another issuer's":             {other.Token(dev), "token_invalid", "no key of its issuer signed it"},
		"another issuer's name":        {idp.Token(with("iss", other.URL)), "token_invalid", "different provider"},
		"no issuer":                    {idp.Token(with("iss", nil)), "token_invalid", "different provider"},
		"for another client":           {idp.Token(with("aud", "wiki")), "token_invalid", "expected audience"},
		"for nobody":                   {idp.Token(with("aud", nil)), "token_invalid", "expected audience"},
		"for several, made for others": {idp.Token(map[string]any{"groups": "dev", "aud": []string{logintest.Client, "wiki"}, "azp": "wiki"}), "token_invalid", "another client"},
		"expired":                      {idp.Token(with("exp", time.Now().Add(-time.Second).Unix())), "token_expired", "log in again"},
		"without an end":               {idp.Token(with("exp", nil)), "token_expired", ""},
		"not yet good":                 {idp.Token(with("nbf", time.Now().Add(time.Hour).Unix())), "token_invalid", "nbf"},
		"key of nobody":                {idp.Forged(false, dev), "token_invalid", "no key"},
		"key under the issuer's name":  {idp.Forged(true, dev), "token_invalid", ""},
		"not signed":                   {idp.Unsigned(dev), "token_invalid", "none"},
		"signed by what is public":     {idp.Symmetric(dev), "token_invalid", "HS256"},
		"without its signature":        {parts[0] + "." + parts[1] + ".", "token_invalid", ""},
		"another's signature":          {parts[0] + "." + parts[1] + "." + strings.Split(idp.Token(with("sub", "eve")), ".")[2], "token_invalid", ""},
		"no token":                     {"eyJ.e30.", "token_invalid", ""},
		"nobody's":                     {idp.Token(with("sub", nil)), "token_invalid", "names nobody"},
		"of a name with a line":        {idp.Token(with("sub", "ann\nadmin")), "token_invalid", "names nobody"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := people.Verify(t.Context(), tt.token)
			e, _ := err.(*tartarus.Error)
			if e == nil || e.Kind != tartarus.Unauthenticated || e.Code != tt.code || !strings.Contains(e.Message, tt.why) || k.ID != "" {
				t.Fatalf("got %+v, %v", k, err)
			}
			if strings.Contains(e.Message, tt.token) {
				t.Error("the message tells the token")
			}
		})
	}
	for name, claims := range map[string]map[string]any{
		"no_role": {}, "no_role of groups that are none": {"groups": 7}, "no_role of other groups": {"groups": []any{"staff", 7}},
	} {
		_, err := people.Verify(t.Context(), idp.Token(claims))
		e, _ := err.(*tartarus.Error)
		if e == nil || e.Kind != tartarus.Forbidden || !strings.HasPrefix(name, e.Code) || !strings.Contains(e.Message, "oidc:ann (ann@example.com)") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := people.Verify(t.Context(), good); err != nil {
		t.Errorf("after all this a good token is refused: %v", err)
	}
}

// Anybody can make tokens under keys that nobody knows: the issuer is not asked for each.
func TestUnknownKeysDoNotAskForEver(t *testing.T) {
	idp := logintest.New(t)
	idp.Rotate(jose.ES256) // whose keys are made in no time
	people := open(t, rules(idp))
	for range 50 {
		if _, err := people.Verify(t.Context(), idp.Forged(false, nil)); !tartarus.Is(err, tartarus.Unauthenticated) {
			t.Fatal(err)
		}
	}
	if n := idp.Asked("/keys"); n > 10 {
		t.Errorf("50 tokens under unknown keys made %d questions", n)
	}
}

// A key that the issuer has withdrawn is good for some minutes at most, one that is still there works while the issuer is away.
func TestKeysOfTheIssuer(t *testing.T) {
	idp := logintest.New(t)
	dev := map[string]any{"groups": "dev"}
	people := open(t, rules(idp))
	idp.Away(true)
	if _, err := people.Verify(t.Context(), idp.Token(dev)); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("without any keys: %v", err)
	}
	idp.Away(false)
	later := func(d time.Duration) {
		people.keys.mu.Lock()
		people.keys.since, people.keys.tried = people.keys.since.Add(-d), people.keys.tried.Add(-d)
		people.keys.mu.Unlock()
	}
	later(askAgain)
	old := idp.Token(dev)
	if _, err := people.Verify(t.Context(), old); err != nil {
		t.Fatalf("the issuer is back: %v", err)
	}
	idp.Away(true)
	later(fresh + time.Minute)
	if _, err := people.Verify(t.Context(), old); err != nil {
		t.Fatalf("keys are old and the issuer is away: %v", err)
	}
	idp.Rotate(jose.ES256)
	if _, err := people.Verify(t.Context(), idp.Token(dev)); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("a new key while the issuer is away: %v", err)
	}
	idp.Away(false)
	idp.Withdraw()
	later(fresh)
	if _, err := people.Verify(t.Context(), old); !tartarus.Is(err, tartarus.Unauthenticated) {
		t.Fatalf("a withdrawn key: %v", err)
	}
	if _, err := people.Verify(t.Context(), idp.Token(dev)); err != nil {
		t.Fatalf("the new key: %v", err)
	}
	idp.Away(true)
	later(stale + time.Hour)
	if _, err := people.Verify(t.Context(), idp.Token(dev)); !tartarus.Is(err, tartarus.Unavailable) {
		t.Fatalf("keys that nobody confirmed for a day: %v", err)
	}
}

func TestTenantsOfPeople(t *testing.T) {
	idp := logintest.New(t)
	for name, tt := range map[string]struct {
		claim   string
		tenants map[string]string
		value   any
		want    string
	}{
		"named by the claim":       {"org", nil, "acme", "acme"},
		"by a URL":                 {"https://id.example.com/org", nil, "acme", "acme"},
		"inside":                   {"realm_access.org", nil, "acme", "acme"},
		"mapped":                   {"org", map[string]string{"Acme Inc": "acme"}, []string{"staff", "Acme Inc"}, "acme"},
		"twice the same":           {"org", map[string]string{"a": "acme", "b": "acme"}, []string{"a", "b"}, "acme"},
		"two":                      {"org", map[string]string{"a": "acme", "b": "blue"}, []string{"a", "b"}, ""},
		"not mapped":               {"org", map[string]string{"a": "acme"}, "acme", ""},
		"no name for a tenant":     {"org", nil, "../acme", ""},
		"none":                     {"org", nil, nil, ""},
		"every tenant's wild card": {"org", nil, "*", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := rules(idp)
			cfg.TenantClaim, cfg.Tenants = tt.claim, tt.tenants
			claims := map[string]any{"groups": "dev", tt.claim: tt.value}
			if tt.claim == "realm_access.org" {
				claims = map[string]any{"groups": "dev", "realm_access": map[string]any{"org": tt.value}}
			}
			k, err := open(t, cfg).Verify(t.Context(), idp.Token(claims))
			if k.Tenant != tt.want || (tt.want == "") != tartarus.Is(err, tartarus.Forbidden) {
				t.Errorf("got %q, %v", k.Tenant, err)
			}
		})
	}
}

func TestNamesOfPeople(t *testing.T) {
	for want, claims := range map[string]map[string]any{
		"a@x":                   {"email": "a@x", "name": "A"},
		"A":                     {"email": "a@x", "email_verified": false, "name": "A"},
		"b":                     {"preferred_username": "b\n", "name": "B"},
		"":                      {"name": 7},
		strings.Repeat("ü", 64): {"name": strings.Repeat("ü", 100)},
	} {
		if got := nameOf(claims); got != want {
			t.Errorf("%v is called %q", claims, got)
		}
	}
}

func TestBadConfigurations(t *testing.T) {
	good := Config{Issuer: "https://id.example.com/realm", ClientID: "x", RoleClaim: "groups", Roles: map[string]tenant.Role{"a": tenant.Admin}, Tenant: "default"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c *Config){
		"oidc.issuer":     func(c *Config) { c.Issuer = "http://id.example.com" },
		"https URL":       func(c *Config) { c.Issuer = "id.example.com" },
		"machine":         func(c *Config) { c.Issuer = "https://user:pw@id.example.com" },
		"oidc.clientID":   func(c *Config) { c.ClientID = "" },
		"oidc.roles":      func(c *Config) { c.Roles = nil },
		"none of admin":   func(c *Config) { c.Roles = map[string]tenant.Role{"a": "king"} },
		"oidc.tenant ":    func(c *Config) { c.Tenant = "" },
		"oidc.tenants is": func(c *Config) { c.Tenants = map[string]string{"a": "b"} },
		"oidc.tenants: ":  func(c *Config) { c.TenantClaim, c.Tenants = "org", map[string]string{"a": "*"} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
