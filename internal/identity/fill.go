package identity

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Source is where placeholders get their values from.
type Source struct {
	Signer *Signer
	// Secret gives the value of a tenant's secret.
	Secret func(ctx context.Context, tenant, name string) (string, error)
}

// Placeholders begin like this and end with a brace.
const (
	open        = "${e2b."
	secretsOpen = "${e2b.secrets."
	tokensOpen  = "${e2b.identity.tokens."
)

// Fill puts the values of a sandbox's secrets and tokens in the place of their placeholders. One that cannot be filled is an error, and
// nothing is returned: half a credential is none. Errors name placeholders, never values.
func (s *Source) Fill(ctx context.Context, tenant, sandbox string, tokens map[string]tartarus.IdentityToken, text string) (string, error) {
	return replace(text, func(placeholder string) (string, error) {
		secret, token, err := parse(tokens, placeholder)
		if err != nil {
			return "", err
		}
		if secret == "" {
			return s.Signer.Token(tenant, sandbox, token.Audience, time.Now())
		}
		value, err := s.Secret(ctx, tenant, secret)
		if tartarus.Is(err, tartarus.NotFound) {
			return "", tartarus.Errorf(tartarus.NotFound, "there is no secret %.80q", secret)
		}
		return value, err
	})
}

// Check refuses text with placeholders that can never be filled. A secret need not be there yet.
func Check(tokens map[string]tartarus.IdentityToken, text string) error {
	_, err := replace(text, func(placeholder string) (string, error) {
		_, _, err := parse(tokens, placeholder)
		return "", err
	})
	return err
}

// Secrets are the names of the secrets that a text has placeholders of, each once and in order.
func Secrets(text string) []string {
	var names []string
	_, _ = replace(text, func(placeholder string) (string, error) {
		if name, ok := strings.CutPrefix(placeholder, secretsOpen); ok && name != "" {
			names = append(names, name)
		}
		return "", nil
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// replace puts something in the place of each placeholder.
func replace(text string, value func(placeholder string) (string, error)) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, open)
		out.WriteString(before)
		if !found {
			return out.String(), nil
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", tartarus.Errorf(tartarus.Invalid, "the placeholder %s%.80s does not end", open, rest)
		}
		filled, err := value(open + name)
		if err != nil {
			return "", err
		}
		out.WriteString(filled)
		text = after
	}
}

// parse reads a placeholder without its brace: it names a secret or a token.
func parse(tokens map[string]tartarus.IdentityToken, placeholder string) (secret string, token tartarus.IdentityToken, err error) {
	if name, ok := strings.CutPrefix(placeholder, secretsOpen); ok && name != "" {
		return name, token, nil
	}
	name, ok := strings.CutPrefix(placeholder, tokensOpen)
	if !ok {
		return "", token, tartarus.Errorf(tartarus.Invalid, "%.80s} is no placeholder: there are %sNAME} and %sNAME}", placeholder, secretsOpen, tokensOpen)
	}
	if token, ok = tokens[name]; !ok {
		return "", token, tartarus.Errorf(tartarus.Invalid, "this sandbox has no identity token %.80q", name)
	}
	return "", token, nil
}

// CheckTokens refuses what no token can be made of.
func CheckTokens(tokens map[string]tartarus.IdentityToken) error {
	const maxTokens, maxName, maxAudience = 10, 128, 1024
	if len(tokens) > maxTokens {
		return tartarus.Errorf(tartarus.Invalid, "iam.tokens may have %d entries, not %d", maxTokens, len(tokens))
	}
	for name, t := range tokens {
		switch {
		case name == "" || len(name) > maxName || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c == '{' || c == '}' || c >= 0x7f && c <= 0x9f }):
			return tartarus.Errorf(tartarus.Invalid, "iam.tokens: a name has 1 to %d characters, none of them a brace, unlike %.80q", maxName, name)
		case t.Audience == "" || len(t.Audience) > maxAudience:
			return tartarus.Errorf(tartarus.Invalid, "iam.tokens: the audience of %s must have 1 to %d bytes", name, maxAudience)
		case t.Type != Type:
			return tartarus.Errorf(tartarus.Invalid, "iam.tokens: the tokenType of %s must be %s", name, Type)
		}
	}
	return nil
}
