package themis

import (
	"slices"

	"github.com/tartarus-sandbox/tartarus"
)

// Heat is what a policy lets callers say of how hot their sandboxes are. What the hint of one may do beyond it, is not done; nothing is refused for it.
type Heat struct {
	// Hint is by how many steps a hint may move the heat, either way: 0 to 3. The configuration's heat.hint bounds it too.
	Hint *int `yaml:"hint,omitempty" json:"hint,omitempty"`
	// Hottest is what a hint may raise the heat to, at the most. Empty is any.
	Hottest string `yaml:"hottest,omitempty" json:"hottest,omitempty"`
}

// byHeat are the heats, coolest first.
var byHeat = []string{"cold", "warm", "hot", "inferno"}

func (h *Heat) validate() error {
	switch {
	case h == nil:
		return nil
	case h.Hint != nil && (*h.Hint < 0 || *h.Hint >= len(byHeat)):
		return tartarus.Errorf(tartarus.Invalid, "heat: hint %d must be 0 to %d steps", *h.Hint, len(byHeat)-1)
	case h.Hottest != "" && !slices.Contains(byHeat, h.Hottest):
		return tartarus.Errorf(tartarus.Invalid, "heat: hottest %.20q is none of cold, warm, hot, inferno", h.Hottest)
	case h.Hint == nil && h.Hottest == "":
		return tartarus.Errorf(tartarus.Invalid, "heat: hint or hottest is needed")
	}
	return nil
}

// Heat is what the policies about a request say together: the least of all bounds.
func (e *Engine) Heat(in *Input) (out Heat) {
	s := e.now.Load()
	if s == nil {
		return out // nothing is let in while no policies are known
	}
	for _, c := range s.about(in) {
		p := c.Policy.Heat
		if p == nil {
			continue
		}
		if p.Hint != nil && (out.Hint == nil || *p.Hint < *out.Hint) {
			out.Hint = p.Hint
		}
		if p.Hottest != "" && (out.Hottest == "" || slices.Index(byHeat, p.Hottest) < slices.Index(byHeat, out.Hottest)) {
			out.Hottest = p.Hottest
		}
	}
	return out
}
