// @octokit/rest.
import { Octokit } from "@octokit/rest";

const github = new Octokit({ auth: "placeholder" });
const site = { owner: "acme", repo: "site" };

if (process.argv.at(-1) === "read") {
  console.log((await github.rest.repos.get(site)).data.description);
} else {
  try {
    console.log((await github.rest.issues.create({ ...site, title: "juniper" })).data.title);
  } catch (error) {
    console.error(error.status, error.message);
    process.exitCode = 1;
  }
}
