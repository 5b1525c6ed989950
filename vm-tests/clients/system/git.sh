# git over HTTPS: $1 is the case. The placeholder is what a credential helper would have stored.
set -e
export GIT_TERMINAL_PROMPT=0
git -c user.name=agent -c user.email=agent@example.com clone -q https://placeholder:placeholder@github.com/acme/site.git site
cd site
case $1 in
read)
    git fetch -q origin
    git log --oneline
    echo fetched
    ;;
write)
    echo more >> index.html
    git -c user.name=agent -c user.email=agent@example.com commit -q -a -m "more by $$ at $(date +%s%N)"
    git push -q origin "HEAD:refs/heads/by-$$-$(date +%s)"
    echo pushed
    ;;
esac
