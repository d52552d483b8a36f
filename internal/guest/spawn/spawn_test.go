package spawn

import (
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEnvironmentLayers(t *testing.T) {
	t.Setenv("PATH", "")
	env, err := environment(account.User{Name: "u", Home: "/h"}, map[string]string{"A": "1", "B": "1", "HOME": "/other"}, map[string]string{"B": "2"})
	if want := []string{"A=1", "B=2", "HOME=/other", "LOGNAME=u", "PATH=" + defaultPath, "USER=u"}; err != nil || !slices.Equal(env, want) {
		t.Errorf("%q %v", env, err)
	}
}
