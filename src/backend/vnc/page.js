// The page's script: noVNC shows the screen, in the window's size.
import RFB from "./core/rfb.js";

const element = (id) => document.getElementById(id);

function say(text) {
  element("text").textContent = text;
  element("status").hidden = !text;
}

const address = new URL("websockify", location.href);
address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
const rfb = new RFB(element("screen"), address.href);
rfb.scaleViewport = true;
let end = "The connection has ended; load the page again to connect.";
rfb.addEventListener("connect", () => {
  say("");
  rfb.focus();
});
rfb.addEventListener("disconnect", () => {
  element("login").hidden = true;
  say(end);
});
rfb.addEventListener("credentialsrequired", () => {
  say("The screen has a password.");
  element("login").hidden = false;
  element("password").focus();
});
rfb.addEventListener("securityfailure", () => {
  end = "The password is wrong; load the page again to try another.";
});
rfb.addEventListener("desktopname", (event) => { document.title = event.detail.name; });
element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  element("login").hidden = true;
  say("Connecting");
  rfb.sendCredentials({ password: element("password").value });
});
