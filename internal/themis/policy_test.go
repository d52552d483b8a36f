package themis

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

func doc(rules string) []byte {
	return []byte("apiVersion: tartarus.io/v1\nname: p\nscope: global\n" + rules)
}

func rule(when, effect string) []byte {
	return doc(fmt.Sprintf("rules:\n  - {name: r, when: %q, effect: %s, message: no}\n", when, effect))
}

func TestCompileErrorsSayWhere(t *testing.T) {
	for name, tc := range map[string]struct {
		body []byte
		want string
	}{
		"an expression that breaks off":     {rule("request.vcpu >", "deny"), "policy p: rule r: when: line 1, column 15"},
		"the second line of one":            {doc("rules:\n  - name: r\n    when: |-\n      true &&\n        nothing.here\n    effect: deny\n    message: no\n"), "line 2, column 3: undeclared reference"},
		"a name that is not there":          {rule("request.cpus > 1", "deny"), "line 1, column 1: undeclared reference"},
		"a type that does not fit":          {rule("request.vcpu > '1'", "deny"), "line 1, column 14: found no matching overload"},
		"an expression that is no decision": {rule("request.vcpu", "deny"), "it gives int, not bool"},
		"no expression":                     {rule("", "deny"), "an expression has 1 to 4096 bytes"},
		"an effect of another kind":         {rule("true", "maybe"), `effect "maybe" is none of deny, quarantine`},
		"another schema":                    {[]byte("apiVersion: tartarus.io/v9\nname: p\nscope: global\n"), "this build reads tartarus.io/v1"},
		"a field that nobody knows":         {doc("ruels: []\n"), "line 4: field ruels not found"},
		"two documents":                     {append(rule("true", "deny"), "---\na: b\n"...), "followed by another document"},
		"nothing":                           {nil, "the policy is empty"},
		"no rules":                          {doc(""), "it has no rules"},
		"a tenant with scope global":        {doc("tenant: acme\nrules: []\n"), "tenant goes with scope tenant"},
		"the same name twice":               {doc("rules:\n  - {name: r, when: 'true', effect: deny, message: no}\n  - {name: r, when: 'true', effect: deny, message: no}\n"), "rule 2: name"},
		"no message":                        {doc("rules:\n  - {name: r, when: 'true', effect: deny}\n"), "a message of up to 512 bytes is needed"},
		"a risk of whole numbers":           {doc("risk: {score: '1', denyAt: 1}\n"), "it gives int, not double"},
		"a risk without bounds":             {doc("risk: {score: '1.0'}\n"), "quarantineAt or denyAt is needed"},
		"an action that is none":            {doc("rules:\n  - {name: r, on: [destroy], when: 'true', effect: deny, message: no}\n"), "none of the actions"},
		"a test that wants nothing":         {append(rule("true", "deny"), "tests: [{name: a, want: perhaps}]\n"...), "none of allow, deny, quarantine"},
		"a document without end":            {[]byte(strings.Repeat("# x\n", 100_000)), "the policy is over"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Compile(tc.body, 1)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if !tartarus.Is(err, tartarus.Invalid) && !tartarus.Is(err, tartarus.TooLarge) {
				t.Fatalf("%v is of kind %s", err, tartarus.KindOf(err))
			}
		})
	}
}

// What cannot be decided is denied, and says why.
func TestWhatCannotBeDecidedIsDenied(t *testing.T) {
	for name, when := range map[string]string{
		"it fails":        `request.vcpu / (request.vcpu - request.vcpu) == 1`,
		"it costs much":   `request.allow.all(a, request.allow.all(b, a == b))`,
		"a key is absent": `tenant.labels["absent"] == "x"`,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Compile(rule(when, "quarantine"), 3)
			if err != nil {
				t.Fatal(err)
			}
			in := Input{Request: RequestInput{VCPU: 1, Allow: slices.Repeat([]string{"a"}, 1000)}}
			r := c.Try(in)
			if r.Verdict() != "deny" || r.Reasons[0].Code != "policy_failed" || r.Reasons[0].Rule != "r" || r.Reasons[0].Policy != "p@3" {
				t.Fatalf("got %+v", r)
			}
		})
	}
}

// Only what cannot cost much runs without its cost being counted.
func TestShortExpressions(t *testing.T) {
	env, err := environment()
	if err != nil {
		t.Fatal(err)
	}
	for when, want := range map[string]bool{
		`template.image != "" && !template.pinned`:                       true,
		`tenant.labels[?"a"].orValue("") == "x" || request.vcpu + 1 > 2`: true,
		`request.timeout > duration("1h") && now.getHours() < 6`:         true,
		`"a" in request.allow && size(request.deny) > 2`:                 true,
		`request.allow.exists(a, a == "b")`:                              false,
		`template.image + template.image == "x"`:                         false,
		`template.image.matches("(a|b)*c")`:                              false,
		`request.allow + request.allow == []`:                            false,
		`request.vcpu > 1 || request.allow.map(a, a + a).size() > 3`:     false,
	} {
		checked, issues := env.Compile(when)
		if issues.Err() != nil {
			t.Fatal(issues.Err())
		}
		if got := short(checked); got != want {
			t.Errorf("%s: got %t", when, got)
		}
	}
}

func TestEveryVariableCanBeAsked(t *testing.T) {
	for name, v := range variables {
		if got := v.get(&Input{}); got == nil {
			t.Errorf("%s has no value", name)
		}
		c, err := Compile(rule(name+" == "+name, "deny"), 1)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r := c.Try(Input{}); r.Verdict() != "deny" || r.Reasons[0].Code != "r" {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// The policies that come with the project do what they say: each has tests, and each of their rules decides one.
func TestPoliciesOfTheProject(t *testing.T) {
	files, err := filepath.Glob("../../deploy/policies/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d policies: %v", len(files), err)
	}
	text, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Compile(body, 1)
			if err != nil {
				t.Fatal(err)
			}
			if c.Name+".yaml" != filepath.Base(file) || c.Description == "" || !strings.Contains(string(text), c.Name+".yaml") {
				t.Errorf("policy %s has another name than its file, no description, or no place in docs/policies.md", c.Name)
			}
			allowed, decided := 0, map[string]int{}
			for _, r := range c.RunTests() {
				if !r.OK {
					t.Errorf("%s: got %+v, want %s", r.Name, r.Ruling, r.Want)
				}
				if r.Want == "allow" {
					allowed++
				}
				for _, q := range append(slices.Clip(r.Ruling.Reasons), r.Ruling.Demand.Reasons...) {
					decided[q.Rule]++
				}
			}
			for _, r := range c.rules {
				if decided[r.Name] == 0 {
					t.Errorf("no test is decided by rule %s", r.Name)
				}
			}
			if c.Risk != nil && decided["risk"] < 2 || allowed == 0 {
				t.Errorf("allowed %d, by risk %d", allowed, decided["risk"])
			}
		})
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(rule("request.vcpu > 1", "deny"))
	f.Add(doc("risk: {score: 'double(request.vcpu)', denyAt: 1}\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := Compile(body, 1)
		if err != nil {
			if !tartarus.Is(err, tartarus.Invalid) && !tartarus.Is(err, tartarus.TooLarge) {
				t.Fatalf("%v is of kind %s", err, tartarus.KindOf(err))
			}
			return
		}
		c.Try(Input{})
	})
}
