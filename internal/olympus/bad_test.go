package olympus_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/olympus"
	"github.com/tartarus-sandbox/tartarus/internal/olympus/olympustest"
)

// What no sandbox can be made of is 400 with a reason, whichever version it is sent to, and nothing is started.
func TestBadCreates(t *testing.T) {
	r := newRig(t, func(c *olympus.Config, _ *olympustest.Node) { c.CanPause = false })
	many := func(n int, format string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(parts, ",")
	}
	for name, tc := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"empty":                {"", 400, "must be a JSON object"},
		"null":                 {"null", 400, "must be a JSON object"},
		"list":                 {"[]", 400, "must be a JSON object"},
		"cut off":              {"{\n  \"templateID\":", 400, "line 2, column 15"},
		"not JSON":             {"{\n\"a\": nope}", 400, "line 2, column 7"},
		"goes on":              {`{"templateID":"base"} {}`, 400, "goes on after"},
		"string for number":    {`{"templateID":"base","timeout":"60"}`, 400, "timeout must not be a string"},
		"fraction":             {`{"templateID":"base","timeout":1.5}`, 400, "timeout must not be a number"},
		"huge number":          {`{"templateID":"base","memoryMB":99999999999999999999}`, 400, "memoryMB"},
		"deep":                 {`{"templateID":` + strings.Repeat("[", 100_000), 400, ""},
		"unknown template":     {`{"templateID":"nope"}`, 404, `template \"nope\" not found`},
		"path as template":     {`{"templateID":"../../etc/passwd"}`, 404, "not found"},
		"template with NUL":    {`{"templateID":"a\u0000b"}`, 400, "templateID"},
		"long template":        {`{"templateID":"` + strings.Repeat("a", 300) + `"}`, 400, "templateID"},
		"no time":              {`{"templateID":"base","timeout":0}`, 400, "timeout is 0 s"},
		"negative time":        {`{"templateID":"base","timeout":-1}`, 400, "timeout"},
		"too much time":        {`{"templateID":"base","timeout":86401}`, 400, "86400"},
		"overflowing time":     {`{"templateID":"base","timeout":9223372036854775807}`, 400, "timeout"},
		"no cpu":               {`{"templateID":"base","cpuCount":0}`, 400, "cpuCount"},
		"many cpus":            {`{"templateID":"base","cpuCount":9}`, 400, "cpuCount is 9"},
		"little memory":        {`{"templateID":"base","memoryMB":64}`, 400, "memoryMB is 64"},
		"negative disk":        {`{"templateID":"base","diskSizeMB":-5}`, 400, "diskSizeMB"},
		"overflowing disk":     {`{"templateID":"base","diskSizeMB":9223372036854775807}`, 400, "diskSizeMB"},
		"bad runtime":          {`{"templateID":"base","runtime":"a b"}`, 400, "runtime"},
		"bad tier":             {`{"templateID":"base","tier":"iron"}`, 400, "tier"},
		"env name":             {`{"templateID":"base","envVars":{"A=B":"1"}}`, 400, "envVars"},
		"env empty name":       {`{"templateID":"base","envVars":{"":"1"}}`, 400, "envVars"},
		"env NUL":              {`{"templateID":"base","envVars":{"A":"a\u0000b"}}`, 400, "envVars"},
		"env number":           {`{"templateID":"base","envVars":{"A":1}}`, 400, "envVars"},
		"env long":             {`{"templateID":"base","envVars":{"A":"` + strings.Repeat("x", 128<<10) + `"}}`, 400, "too long"},
		"env many":             {`{"templateID":"base","envVars":{` + many(1001, `"A%d":""`) + `}}`, 400, "1000 variables"},
		"metadata many":        {`{"templateID":"base","metadata":{` + many(65, `"a%d":""`) + `}}`, 400, "64 keys"},
		"metadata long key":    {`{"templateID":"base","metadata":{"` + strings.Repeat("k", 257) + `":""}}`, 400, "metadata"},
		"metadata not strings": {`{"templateID":"base","metadata":{"a":{"b":"c"}}}`, 400, "metadata"},
		"too large":            {`{"templateID":"base","metadata":{"a":"` + strings.Repeat("x", 1<<20) + `"}}`, 413, "1 MiB"},
		"no such volume":       {`{"templateID":"base","volumeMounts":[{"name":"v","path":"/v"}]}`, 404, "volumeMounts"},
		"volume at the root":   {`{"templateID":"base","volumeMounts":[{"name":"v","path":"/"}]}`, 400, "volumeMounts"},
		"volume nowhere":       {`{"templateID":"base","volumeMounts":[{"name":"v","path":"../v"}]}`, 400, "volumeMounts"},
		"volume over devices":  {`{"templateID":"base","volumeMounts":[{"name":"v","path":"/dev/v"}]}`, 400, "volumeMounts"},
		"iam type":             {`{"templateID":"base","iam":{"tokens":{"a":{"audience":"x","tokenType":"X509"}}}}`, 400, "tokenType"},
		"iam audience":         {`{"templateID":"base","iam":{"tokens":{"a":{"tokenType":"JWT-SVID"}}}}`, 400, "audience"},
		"iam name":             {`{"templateID":"base","iam":{"tokens":{"a}b":{"audience":"x","tokenType":"JWT-SVID"}}}}`, 400, "brace"},
		"pause":                {`{"templateID":"base","autoPause":true}`, 400, "autoPause"},
		"resume":               {`{"templateID":"base","autoResume":{"enabled":true}}`, 400, "autoResume"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/sandboxes", "/v2/sandboxes"} {
				(&rig{r.Stack, t}).call("developer", "POST", path, tc.body).want(tc.status, tc.want)
			}
		})
	}
	if n := len(r.Node.Held()); n != 0 {
		t.Fatalf("%d sandboxes were started", n)
	}
}

// What cannot be done with the network is said, never passed over.
func TestNetworkOptions(t *testing.T) {
	r := newRig(t, nil)
	long := strings.Repeat("a", 64)
	many := func(n int, format string) string {
		parts := make([]string, n)
		for i := range parts {
			parts[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(parts, ",")
	}
	for network, want := range map[string]string{
		`{"rules":{"*":[]}}`:                                                              "rules",
		`{"rules":{"http://a.com":[]}}`:                                                   "rules",
		`{"rules":{"a.com":[{},{}]}}`:                                                     "one rule",
		`{"rules":{"a.com":[{"transform":{"body":"x"}}]}}`:                                "body",
		`{"rules":{` + many(11, `"a%d.com":[]`) + `}}`:                                    "10 domains",
		`{"rules":{"a.com":[{"transform":{"headers":{` + many(21, `"a%d":"b"`) + `}}}]}}`: "20 headers",
		`{"egressProxy":{"address":7}}`:                                                   "address",
		`{"egressProxy":{"address":"a:1","more":1}}`:                                      "more",
		`{"dnsServers":["example.com"]}`:                                                  "dnsServers",
		`{"dnsServers":["::1"]}`:                                                          "dnsServers",
		`{"newRestriction":true}`:                                                         "newRestriction",
		`{"allow_internet_access":false}`:                                                 "outside of network",
		`{"allowOut":["example.com"]}`:                                                    "needs denyOut",
		`{"allowOut":["example.com"],"denyOut":["8.8.8.8"]}`:                              "needs denyOut",
		`{"denyOut":["example.com"]}`:                                                     "denyOut",
		`{"denyOut":["1.2.3.4/33"]}`:                                                      "denyOut",
		`{"denyOut":["fe80::1%eth0"]}`:                                                    "denyOut",
		`{"denyOut":["::ffff:1.2.3.4/96"]}`:                                               "denyOut",
		`{"allowOut":["1.2.3"],"denyOut":["0.0.0.0/0"]}`:                                  "allowOut",
		`{"allowOut":["*"],"denyOut":["0.0.0.0/0"]}`:                                      "allowOut",
		`{"allowOut":["a.*.com"],"denyOut":["0.0.0.0/0"]}`:                                "allowOut",
		`{"allowOut":["http://a.com"],"denyOut":["0.0.0.0/0"]}`:                           "allowOut",
		`{"allowOut":["a..com"],"denyOut":["0.0.0.0/0"]}`:                                 "allowOut",
		`{"allowOut":["-a.com"],"denyOut":["0.0.0.0/0"]}`:                                 "allowOut",
		`{"allowOut":["` + long + `.com"],"denyOut":["0.0.0.0/0"]}`:                       "allowOut",
		`{"allowOut":["bücher.de"],"denyOut":["0.0.0.0/0"]}`:                              "allowOut",
		`{"allowOut":[""]}`:                                                               "allowOut",
		`{"maskRequestHost":"a\r\nX-Evil: 1"}`:                                            "maskRequestHost",
		`{"maskRequestHost":"a/b"}`:                                                       "maskRequestHost",
		`{"maskRequestHost":"` + strings.Repeat("a", 300) + `"}`:                          "maskRequestHost",
		`{"httpsPorts":[0]}`:                                                              "httpsPorts",
		`{"httpsPorts":[65536]}`:                                                          "httpsPorts",
		`{"httpsPorts":[49983]}`:                                                          "httpsPorts",
		`{"httpsPorts":[` + strings.Repeat("1,", 64) + `1]}`:                              "httpsPorts",
		`{"denyOut":[` + strings.Repeat(`"1.1.1.1",`, 512) + `"1"]}`:                      "512",
		`[]`:  "JSON object",
		`"x"`: "JSON object",
	} {
		r.call("developer", "POST", "/v2/sandboxes", `{"templateID":"base","network":`+network+`}`).want(400, want)
	}
	for _, tc := range []struct{ body, allow, deny string }{
		{`"network":null`, "", ""},
		{`"network":{"rules":{},"egressProxy":null,"dnsServers":[]}`, "", ""},
		{`"network":{"allowOut":["EXAMPLE.com","*.Example.org","10.1.2.3/8"],"denyOut":["0.0.0.0/0"]}`, "example.com *.example.org 10.0.0.0/8", "0.0.0.0/0 ::/0"},
		{`"allow_internet_access":false,"network":{"allowOut":["pkg.example.org"]}`, "pkg.example.org", "0.0.0.0/0 ::/0"},
		{`"allow_internet_access":false`, "", ""},
		{`"network":{"denyOut":["::ffff:1.2.3.4","1.2.3.4"]}`, "", "1.2.3.4"},
		{`"network":{"dnsServers":["9.9.9.9"],"egressProxy":{"address":"proxy.example.org:1080"},"rules":{"A.com":[{"transform":{"headers":{"X":"y"}}}],"*.com":[]}}`, "", ""},
		{`"network":{"httpsPorts":[443,8443],"maskRequestHost":"localhost:${PORT}"}`, "", ""},
	} {
		sb := r.create(`{"templateID":"base",` + tc.body + `}`)
		n := r.Node.Held()[0].Network
		if got := strings.Join(n.Allow, " "); got != tc.allow {
			t.Errorf("%s: allow %q, want %q", tc.body, got, tc.allow)
		}
		if got := strings.Join(n.Deny, " "); got != tc.deny {
			t.Errorf("%s: deny %q, want %q", tc.body, got, tc.deny)
		}
		off := strings.Contains(tc.body, "false") || strings.Contains(tc.body, "0.0.0.0/0")
		if d := r.detail(sb.SandboxID); d.AllowInternetAccess == off {
			t.Errorf("%s: allowInternetAccess is %v", tc.body, d.AllowInternetAccess)
		}
		r.call("developer", "DELETE", "/sandboxes/"+sb.SandboxID, "").want(204)
	}
}

func TestBadUpdates(t *testing.T) {
	r := newRig(t, nil)
	id := r.create(`{"templateID":"base"}`).SandboxID
	for _, tc := range []struct{ method, path, body, want string }{
		{"PUT", "/network", "", "JSON object"},
		{"PUT", "/network", `{"allowPublicTraffic":false}`, "fixed when"},
		{"PUT", "/network", `{"maskRequestHost":"a"}`, "fixed when"},
		{"PUT", "/network", `{"httpsPorts":[]}`, "fixed when"},
		{"PUT", "/network", `{"allowOut":["a.com"]}`, "needs denyOut"},
		{"PUT", "/network", `{"rules":{"a":[]}}`, "rules"},
		{"PUT", "/network", `{"dnsServers":["x"]}`, "dnsServers"},
		{"POST", "/timeout", "", "JSON object"},
		{"POST", "/timeout", "{}", "timeout is needed"},
		{"POST", "/timeout", `{"timeout":-1}`, "timeout"},
		{"POST", "/timeout", `{"timeout":86401}`, "86400"},
		{"POST", "/timeout", `{"timeout":1e400}`, "timeout"},
		{"POST", "/refreshes", `{"duration":"5"}`, "duration"},
		{"POST", "/refreshes", `{"duration":-5}`, "duration"},
		{"POST", "/connect", `{"timeout":86401}`, "86400"},
		{"POST", "/connect", `[`, "JSON object"},
		{"POST", "/resume", `{"timeout":-1}`, "timeout"},
		{"GET", "?ended=maybe", "", "ended"},
		{"GET", "?ended=", "", "ended"},
		{"GET", "?%zz", "", "query"},
		{"GET", "/metrics?start=x", "", "start"},
		{"GET", "/metrics?start=-1", "", "start"},
		{"GET", "/metrics?end=99999999999999999", "", "end"},
		{"GET", "/metrics?start=10&end=5", "", "after end"},
		{"GET", "/metrics?start=%zz", "", "query"},
		{"GET", "/logs?limit=0", "", "limit"},
		{"GET", "/logs?limit=1001", "", "limit"},
		{"GET", "/logs?start=yesterday", "", "start"},
		{"GET", "/logs?start=9223372036854775807", "", "start"},
	} {
		r.call("developer", tc.method, "/sandboxes/"+id+tc.path, tc.body).want(400, tc.want)
	}
	for _, query := range []string{
		"state=walking", "state=", "state=running,,paused", "order=up", "limit=0", "limit=101", "limit=x", "limit=", "nextToken=x", "nextToken=!!!",
		"nextToken=YWJj", "startedAfter=yesterday", "startedAfter=", "metadata=a%3Db%253B%3B", "metadata=%3Dv", "metadata=" + url.QueryEscape(strings.Repeat("k", 300)), "a;b", "%",
	} {
		r.call("developer", "GET", "/v2/sandboxes?"+query, "").want(400)
	}
	for _, query := range []string{"cursor=x", "limit=0", "direction=up", "level=loud", "cursor=-99999999999999999"} {
		r.call("developer", "GET", "/v2/sandboxes/"+id+"/logs?"+query, "").want(400)
	}
	for _, query := range []string{"", "sandbox_ids=", "sandbox_ids=../x", "sandbox_ids=" + strings.Repeat("a,", 100) + "a", "sandbox_ids=A"} {
		r.call("developer", "GET", "/sandboxes/metrics?"+query, "").want(400, "sandbox_ids")
	}
	if got := r.Node.Held(); len(got) != 1 {
		t.Fatalf("the node holds %d", len(got))
	}
}

// Ids that try to be something else are not found, wherever they are used.
func TestBadIDs(t *testing.T) {
	r := newRig(t, nil)
	for _, id := range []string{"..", ".", "%2e%2e", "..%2f..%2fetc", "%2fetc%2fpasswd", "A", "i_1", "i%00", "i%0a", "%20", strings.Repeat("i", 33), strings.Repeat("i", 5000), "ïd", "i'or'1'='1", "iunknown"} {
		for _, c := range [][3]string{
			{"GET", "", ""}, {"DELETE", "", ""}, {"POST", "/connect", "{}"}, {"POST", "/resume", "{}"}, {"POST", "/timeout", `{"timeout":1}`},
			{"POST", "/refreshes", "{}"}, {"PUT", "/network", "{}"}, {"GET", "/metrics", ""}, {"GET", "/logs", ""},
		} {
			r.call("developer", c[0], "/sandboxes/"+id+c[1], c[2]).want(404)
		}
		r.call("developer", "GET", "/v2/sandboxes/"+id+"/logs", "").want(404)
		r.call("developer", "POST", "/v2/sandboxes/"+id+"/connect", "{}").want(404)
	}
}
